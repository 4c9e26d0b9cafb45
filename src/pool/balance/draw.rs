//! Drawing members at random, in proportion to their shares.
//!
//! Walker's alias method: each member that has a share is one of `n` columns of equal width, and where its share is
//! less than the average, the rest of its column belongs to one whose share is more. A draw is one look into one column,
//! whatever the number of members and their shares.

use super::{Random, scale};

/// How often an unfit member is drawn before those that are left are gone through one by one.
const REDRAWS: usize = 16;

/// Members to draw from; those without share are not in it.
#[derive(Debug)]
pub struct Draw {
    columns: Box<[Column]>,
}

#[derive(Debug)]
struct Column {
    index: u32,
    share: u32,
    /// Which part of the column, of 2^32, is the member's own.
    own: u64,
    /// Whose the rest is.
    alias: u32,
}

impl Draw {
    pub fn new(shares: &[u32]) -> Draw {
        let mut columns: Vec<Column> = Vec::new();
        for (index, share) in shares.iter().enumerate() {
            if *share != 0 {
                columns.push(Column {
                    index: index as u32,
                    share: *share,
                    own: 1 << 32,
                    alias: index as u32,
                });
            }
        }
        fill(&mut columns);
        Draw {
            columns: columns.into(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// One of the members that are free, each in proportion to its share among them.
    pub fn pick(&self, random: &mut Random, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        if self.columns.is_empty() {
            return None;
        }
        // Drawing again until one is free keeps the proportions.
        for _ in 0..REDRAWS {
            let index = self.one(random);
            if is_free(index) {
                return Some(index);
            }
        }
        self.one_of_few(random, is_free)
    }

    fn one(&self, random: &mut Random) -> usize {
        let bits = random.next();
        let column = &self.columns[scale(bits, self.columns.len())];
        let within = random.next() >> 32;
        let index = if within < column.own {
            column.index
        } else {
            column.alias
        };
        index as usize
    }

    /// The same where nearly nobody is free.
    fn one_of_few(&self, random: &mut Random, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let free = || {
            let columns = self.columns.iter();
            columns.filter(|column| is_free(column.index as usize))
        };
        let sum: usize = free().map(|column| column.share as usize).sum();
        let mut before = scale(random.next(), sum);
        let mut last = None;
        // Who is free may change between the two rounds; then it is whoever comes last.
        for column in free() {
            last = Some(column.index as usize);
            match before.checked_sub(column.share as usize) {
                Some(left) => before = left,
                None => break,
            }
        }
        last
    }
}

/// Gives what columns have too little from those that have too much.
fn fill(columns: &mut [Column]) {
    let count = columns.len() as u64;
    let sum: u64 = columns.iter().map(|column| u64::from(column.share)).sum();
    // in units of which a full column holds `sum`
    let mut content: Vec<u64> = columns
        .iter()
        .map(|column| u64::from(column.share) * count)
        .collect();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
        (0..columns.len()).partition(|column| content[*column] < sum);
    while let (Some(this), Some(giver)) = (poor.pop(), rich.last().copied()) {
        columns[this].own = ((u128::from(content[this]) << 32) / u128::from(sum)) as u64;
        columns[this].alias = columns[giver].index;
        content[giver] -= sum - content[this];
        if content[giver] < sum {
            rich.pop();
            poor.push(giver);
        }
    }
}
