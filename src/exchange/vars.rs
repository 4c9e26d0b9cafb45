//! Run-time variables (`$host`, `$uri`, ...) with nginx's names and meanings, and templates made of them.
