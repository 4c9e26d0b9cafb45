//! weir: a web server, reverse proxy and load balancer on Pingora.
//!
//! # The life of a request, straight down
//!
//! ```text
//!  listener          net/            accept, TLS by SNI (certificates from the live snapshot)
//!    |
//!  phases/routing.rs early_request   take ONE snapshot for the whole request; route it
//!    |  router/                      host -> path -> matchers  =>  &Route { chain, handler }
//!    |
//!  phases/answer.rs  request         chain.request(...)         any filter may answer: Flow::Reply
//!    |  filter/                      in registry order
//!    |
//!    |  handler/                     proxy | files | redirect | respond | status
//!    |     proxy -> pool/            pick a target, build the peer, try another one
//!    |     others -> return a Reply  (status, headers, body: bytes | file range)
//!    |
//!  phases/send.rs                    the only code that writes a locally made response
//!    |
//!  phases/           response        chain.response(...)   for proxied AND local answers; what it says becomes of the
//!    |                                body (exchange/transform) happens on its way
//!    |
//!  phases/ending.rs  logging         access log  (log/access.rs)
//! ```
//!
//! Beside them, for operators: `weir status` and its like -> `admin/` (a unix socket) -> `process/`, which carries out
//! what is ordered there in turn with its signals.
//!
//! # Layers
//!
//! Modules stand below in layer order; a module imports from the layers above it in this list, never from
//! those below it (`tests/layers.rs` checks this).

// layer 0: leaves, pure; no Pingora session, no clock, no I/O
pub mod http;
pub mod issue;
pub mod value;
// layer 1: machinery; each owns its raw `Config` and its compiled type
pub mod disk;
pub mod net;
pub mod pool;
pub mod tls;
// layer 2: what features see: one request, and one build
pub mod build;
pub mod exchange;
// its fields are variables of an exchange
pub mod log;
// layer 3: features
pub mod filter;
pub mod handler;
// layer 4
pub mod router;
// layer 5: the document
pub mod config;
// layer 6: the running thing
pub mod runtime;
// layer 7: who asks of it; neither knows the other
pub mod admin;
pub mod phases;
// layer 8
pub mod process;
// layer 9
pub mod cli;
