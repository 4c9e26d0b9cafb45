//! Rules of HTTP, and of what stands ahead of it, without I/O.

pub mod accept;
pub mod base64url;
pub mod chunked;
pub mod coding;
pub mod conditional;
pub mod cookie;
pub mod date;
pub mod expect;
pub mod forwarded;
pub mod frames;
pub mod head;
pub mod header;
pub mod hop;
pub mod host;
pub mod media;
pub mod mime;
pub mod outlet;
pub mod owed;
pub mod path;
pub mod proxy_protocol;
pub mod query;
pub mod range;
pub mod set_cookie;
pub mod version;
pub mod websocket;
