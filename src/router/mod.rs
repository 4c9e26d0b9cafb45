//! From a request to its route.
