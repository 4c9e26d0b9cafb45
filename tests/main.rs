//! Tests of the whole: each starts the real binary and speaks to it over real sockets.

mod harness;

// the source and the texts about it
mod docs; // the YAML in README.md and docs/
mod examples; // conf/*.yaml
mod layers; // who imports whom
mod reference; // docs/reference.md, docs/policies/

// the file and the command line
mod cli; // run, -t, check, route, schema
mod config; // config/*.case: one mistake each
mod quick_start; // weir proxy, weir files

// the way of a request
mod access; // who may come, by address
mod actions; // redirect, respond, status
mod auth; // auth_basic, auth_request, jwt, signed_url
mod balance; // who gets a request
mod body_limit; // bodies that are too large
mod buffer_request; // bodies that are received before a backend is asked
mod buffer_response; // answers that are read ahead of slow clients
mod changing_files; // truncated, replaced, renamed and closed while they are served
mod compress; // answers in a content coding
mod cors; // cors, referer, maintenance
mod crowd; // too many connections
mod decompress; // answers without their content coding
mod errors; // own pages
mod faults; // backends that break off, lie and hang
mod files; // files: and static:
mod headers; // headers, cookies, location, security_headers
mod health; // who may get one
mod limits; // limit_req, limit_conn, limit_rate, timeouts
mod listeners; // addresses of all kinds
mod listing; // what is in a folder
mod mirror; // copies of requests for another pool
mod names; // backends whose addresses name servers know
mod open_files; // files that are remembered, and how large ones are sent
mod pairs; // any two policies on one route
mod passive; // who fails at requests gets none for a while
mod policies; // headers, rewrite, request_id
mod proxy; // what reaches the backend, what comes back
mod queue; // requests that wait for room
mod redirect; // a table in a file
mod retry; // another member after a failed try
mod rewrite; // the query, the method
mod routing; // sites and routes
mod sticky; // sessions that stay with their member
mod streaming; // bodies of any size, WebSocket
mod sub_filter; // texts replaced in bodies
mod variables; // what they say of requests

// the protocols
mod client_auth; // certificates of clients
mod http1;
mod http2;
mod http2_limits; // floods, silence and large headers on HTTP/2
mod http2_websocket; // WebSocket over HTTP/2 (RFC 8441)
mod proxy_protocol; // from proxies in front
mod slow_bodies; // clients that take their time with a body
mod smuggling; // requests that could be read in two ways
mod tls; // certificates, key exchange, sessions, server names
mod upstream; // what is spoken with backends: TLS, HTTP/2, the PROXY protocol

// the process
mod admin; // status, reload, drain, stop
mod drain; // what it tells, and how it ends
mod logs; // access log, error log, reopening
mod reload;
mod shutdown;
mod soak; // everything at once
mod systemd; // notifications, sockets given, the units; process 1 of a container
mod upgrade;
