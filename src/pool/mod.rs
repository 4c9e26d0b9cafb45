//! Pools: where requests can go.

/// A named group of backends with one way to choose among them.
pub struct Pool {}
