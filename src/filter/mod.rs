//! Policies: what may happen to a request and its answer besides being handled. One file each.
