//! Which members one request has tried.

use std::sync::Arc;

use super::Member;

/// A set of members.
///
/// It allocates only for requests that come past their first try.
#[derive(Debug, Default)]
pub struct Tried {
    first: Option<Arc<Member>>,
    more: Vec<Arc<Member>>,
}

impl Tried {
    pub fn insert(&mut self, member: Arc<Member>) {
        match self.first {
            None => self.first = Some(member),
            Some(_) => self.more.push(member),
        }
    }

    pub fn contains(&self, member: &Arc<Member>) -> bool {
        let mut all = self.first.iter().chain(&self.more);
        all.any(|tried| Arc::ptr_eq(tried, member))
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}
