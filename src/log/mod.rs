//! Access log and error log.
