//! Which members one request has tried.

/// A set of member indices.
///
/// It starts empty and without memory of its own: a request allocates only once it tries a member past the 64th.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    first: u64,
    rest: Vec<u64>,
}

impl Tried {
    pub fn insert(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word == 0 {
            self.first |= bit;
            return;
        }
        if self.rest.len() < word {
            self.rest.resize(word, 0);
        }
        self.rest[word - 1] |= bit;
    }

    pub fn contains(&self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        let word = match word {
            0 => self.first,
            _ => self.rest.get(word - 1).copied().unwrap_or(0),
        };
        word & bit != 0
    }

    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn it_is_a_set(indices in prop::collection::vec(0usize..300, 0..20)) {
            let mut tried = Tried::default();
            for index in &indices {
                tried.insert(*index);
            }
            let expected: HashSet<usize> = indices.into_iter().collect();
            prop_assert_eq!(tried.is_empty(), expected.is_empty());
            for index in 0..300 {
                prop_assert_eq!(tried.contains(index), expected.contains(&index));
            }
        }
    }
}
