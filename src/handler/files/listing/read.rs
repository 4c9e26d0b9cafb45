//! The entries of a folder: which a client may see, in which order, and which of them are on a page.

use std::cmp::Ordering;

use nix::dir::Type;

use super::super::is_visible;
use super::super::root::{Child, Children, Facts, Missing, Root};
use super::{Entry, Folder, Kind, Order, PAGE, Page, REACH, Sort, View};

/// Reads the page that `view` asks for; one that is not there is missing.
pub fn page(root: &Root, folder: &Folder, view: &View) -> Result<Page, Missing> {
    let end = view.page.checked_mul(PAGE).filter(|end| *end <= REACH);
    let end = end.ok_or(Missing::NotFound)?;
    let mut children = root.children(&folder.relative)?;
    let mut first = First::new(end, |a: &Found, b: &Found| compare(view, a, b));
    while let Some(child) = children.next() {
        let Child { name, kind } = child?;
        if !is_visible(&name, folder.hidden) {
            continue;
        }
        let kind = match kind {
            Some(Type::File) => Some(Kind::File),
            Some(Type::Directory) => Some(Kind::Folder),
            // where a link leads has to be seen; so has what a file system does not tell
            Some(Type::Symlink) | None => None,
            Some(_) => continue,
        };
        let found = match kind {
            // to ask for the size of each file would take most of the time, and the order does not need it
            Some(kind) if view.sort == Sort::Name => Some(Found {
                name,
                kind,
                facts: None,
            }),
            _ => measured(root, folder, &children, name),
        };
        if let Some(found) = found {
            first.push(found);
        }
    }
    let total = first.total;
    let mut found = first.into_sorted();
    let start = end - PAGE;
    if start > 0 && start >= found.len() {
        return Err(Missing::NotFound);
    }
    let entries = found.drain(start..).filter_map(|found| match found.facts {
        Some(facts) => Some(entry(found.name, found.kind, facts)),
        // what is gone by now is left out
        None => {
            let Found { name, kind, facts } = measured(root, folder, &children, found.name)?;
            Some(entry(name, kind, facts?))
        }
    });
    Ok(Page {
        entries: entries.collect(),
        total,
    })
}

struct Found {
    name: String,
    kind: Kind,
    facts: Option<Facts>,
}

/// What a name in the folder leads to, if it is something that is served.
fn measured(root: &Root, folder: &Folder, children: &Children, name: String) -> Option<Found> {
    let facts = match children.facts(&name).ok()? {
        facts if facts.is_link() => root.facts(&format!("{}{name}", folder.relative)).ok()?,
        facts => facts,
    };
    let kind = match (facts.is_file(), facts.is_folder()) {
        (true, _) => Kind::File,
        (_, true) => Kind::Folder,
        _ => return None,
    };
    Some(Found {
        name,
        kind,
        facts: Some(facts),
    })
}

fn entry(name: String, kind: Kind, facts: Facts) -> Entry {
    Entry {
        name,
        kind,
        size: (kind == Kind::File).then_some(facts.size()),
        modified: facts.modified(),
    }
}

fn compare(view: &View, a: &Found, b: &Found) -> Ordering {
    let size = |found: &Found| match (found.kind, found.facts) {
        (Kind::File, Some(facts)) => facts.size(),
        _ => 0,
    };
    let time = |found: &Found| found.facts.map(|facts| facts.modified());
    let ordering = match view.sort {
        Sort::Name => a.name.cmp(&b.name),
        Sort::Size => size(a).cmp(&size(b)),
        Sort::Time => time(a).cmp(&time(b)),
    };
    let ordering = match view.order {
        Order::Ascending => ordering,
        Order::Descending => ordering.reverse(),
    };
    let folders_first = a.kind.cmp(&b.kind);
    folders_first
        .then(ordering)
        .then_with(|| a.name.cmp(&b.name))
}

/// The first so many in an order of what is pushed, without holding more than twice as many.
struct First<T, F> {
    wanted: usize,
    compare: F,
    held: Vec<T>,
    /// How many were pushed.
    total: usize,
}

impl<T, F: Fn(&T, &T) -> Ordering> First<T, F> {
    fn new(wanted: usize, compare: F) -> First<T, F> {
        First {
            wanted,
            compare,
            held: Vec::new(),
            total: 0,
        }
    }

    fn push(&mut self, item: T) {
        self.total += 1;
        self.held.push(item);
        if self.held.len() > 2 * self.wanted {
            self.held.select_nth_unstable_by(self.wanted, &self.compare);
            self.held.truncate(self.wanted);
        }
    }

    fn into_sorted(mut self) -> Vec<T> {
        self.held.sort_unstable_by(&self.compare);
        self.held.truncate(self.wanted);
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn first_is_the_start_of_the_sorted_whole(
            items in proptest::collection::vec(any::<u16>(), 0..200),
            wanted in 1usize..50,
        ) {
            let mut first = First::new(wanted, u16::cmp);
            for item in &items {
                first.push(*item);
                prop_assert!(first.held.len() <= 2 * wanted);
            }
            prop_assert_eq!(first.total, items.len());
            let mut sorted = items;
            sorted.sort_unstable();
            sorted.truncate(wanted);
            prop_assert_eq!(first.into_sorted(), sorted);
        }
    }
}
