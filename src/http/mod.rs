//! Rules of HTTP without I/O.
