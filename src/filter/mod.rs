//! Policies: what happens to a request before its action and to the answer after it, one file each.
//!
//! The `registry!` list below is the order in which they run, whatever the order in the file: a user should not
//! have to know that a limit belongs before a rewrite. The macro makes of that list the raw [`Filters`] (one
//! optional key per policy), their inheritance and the compiled [`Chain`], with static calls in order. Written by
//! hand, each policy would need a line in nine places that must agree; a slice of `dyn Filter` would box a future
//! per policy and request, and need the list of keys all the same.
//!
//! docs/policies/ is made of that list, its comments included (they say why a policy stands where it does), of the text at
//! the top of each policy's file, up to a heading there, and of what stands at its fields.
//!
//! Each level (`defaults`, site, route) is compiled once, where it is written, on top of the level around it. So a
//! mistake in a site's policy is reported once and at its place, not once per route, and routes share what they
//! inherit.

pub mod access;
pub mod access_log;
pub mod auth_basic;
pub mod auth_request;
pub mod body_limit;
pub mod buffer_request;
pub mod buffer_response;
pub mod compress;
pub mod cookies;
pub mod cors;
pub mod decompress;
pub mod errors;
pub mod headers;
pub mod jwt;
pub mod limit_conn;
pub mod limit_rate;
pub mod limit_req;
pub mod location;
pub mod maintenance;
pub mod mirror;
pub mod referer;
pub mod request_id;
pub mod rewrite;
pub mod security_headers;
pub mod signed_url;
pub mod sub_filter;
pub mod timeouts;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header;
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use crate::build::Build;
use crate::exchange::{Cx, Failure, Reply, Transform, Transforms};
use crate::issue::At;
use crate::log::AccessLogs;
use crate::value::OrOff;
use crate::value::keys::{self, Keyed};

use access::Access;
use access_log::AccessLog;
use auth_basic::AuthBasic;
use auth_request::AuthRequest;
use body_limit::BodyLimit;
use buffer_request::BufferRequest;
use buffer_response::BufferResponse;
use compress::Compress;
use cookies::Cookies;
use cors::Cors;
use decompress::Decompress;
use errors::Errors;
use headers::Headers;
use jwt::Jwt;
use limit_conn::LimitConn;
use limit_rate::LimitRate;
use limit_req::LimitReq;
use location::Location;
use maintenance::Maintenance;
use mirror::Mirror;
use referer::Referer;
use request_id::RequestId;
use rewrite::Rewrite;
use security_headers::SecurityHeaders;
use signed_url::SignedUrl;
use sub_filter::SubFilter;
use timeouts::Timeouts;

/// One compiled policy. It implements the phases that it takes part in.
pub trait Filter: Sized + Send + Sync {
    /// This policy as a nearer level gives it, on top of what the farther level gave. A map-like policy merges its
    /// entries; any other replaces the farther one.
    fn inherit(self, _farther: &Self) -> Self {
        self
    }

    /// Whether [`Filter::request`] may take long enough for the client to be gone by then.
    fn may_wait(&self) -> bool {
        false
    }

    /// Whether what an answer says depends on headers of the request, which it then names in `Vary`.
    fn varies(&self) -> bool {
        false
    }

    /// Before the action. May answer in its place, and may wait.
    fn request(
        &self,
        _cx: &mut Cx,
        _request: &RequestHeader,
        _wall: SystemTime,
    ) -> impl Future<Output = Flow> + Send {
        std::future::ready(Flow::Continue)
    }

    /// A piece of the request's body on its way to a backend, the last one with `end`. May end the request; the backend
    /// sees that its body broke off. Starts anew with each try.
    fn request_body(&self, _cx: &Cx, _body: &mut Option<Bytes>, _end: bool) -> Result<(), Failure> {
        Ok(())
    }

    /// Before the request goes to a backend; `upstream` is what will be sent. Runs once per try.
    fn upstream(
        &self,
        _cx: &Cx,
        _request: &RequestHeader,
        _upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
    }

    /// Before the header of the answer goes to the client, whoever made the answer.
    fn response(
        &self,
        _cx: &Cx,
        _request: &RequestHeader,
        _response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
    }

    /// Right behind [`Filter::response`]: what becomes of the body, and its header with it
    /// ([`crate::exchange::transform`]). Asked for answers without a body too, as for those to HEAD, whose header is to be
    /// that of an answer with one; what it gives is of no use then.
    fn body(
        &self,
        _cx: &Cx,
        _request: &RequestHeader,
        _response: &mut ResponseHeader,
        _wall: SystemTime,
    ) -> Option<Box<dyn Transform>> {
        None
    }
}

/// How a request goes on after a policy.
#[derive(Debug)]
pub enum Flow {
    Continue,
    /// The policy answers; neither later policies nor the action see the request.
    Reply(Reply),
    /// The request ends here for this reason.
    Fail(Failure),
    /// The same, with an answer that says more than the status.
    Refuse(Failure, Reply),
}

macro_rules! registry {
    ($($(#[doc = $doc:literal])+ $key:ident => $filter:ident,)+) => {
        /// The policies that one level of the document gives.
        #[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
        #[schemars(deny_unknown_fields)]
        pub struct Filters {
            $($(#[doc = $doc])+ pub $key: Option<OrOff<$key::Config>>,)+
        }

        impl Keyed for Filters {
            const EXPECTING: &'static str = "a map of policies";
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];

            fn read<'de, A: MapAccess<'de>>(
                &mut self,
                key: &'static str,
                map: &mut A,
            ) -> Result<(), A::Error> {
                match key {
                    $(stringify!($key) => self.$key = Some(map.next_value()?),)+
                    _ => unreachable!("`{key}` is not one of KEYS"),
                }
                Ok(())
            }
        }

        impl Filters {
            /// The chain of this level, on top of the chain of the level around it.
            pub fn compile(&self, at: &At<'_>, farther: &Arc<Chain>, b: &mut Build<'_>) -> Arc<Chain> {
                if *self == Filters::default() {
                    return farther.clone();
                }
                let chain = Chain {
                    $($key: match &self.$key {
                        None => farther.$key.clone(),
                        Some(OrOff::Off) => None,
                        Some(OrOff::On(config)) => {
                            let nearer = config.compile(&at.key(stringify!($key)), b);
                            nearer.map(|nearer| Arc::new(match &farther.$key {
                                Some(farther) => nearer.inherit(farther),
                                None => nearer,
                            }))
                        }
                    },)+
                    empty: false,
                    unlogged: match &self.access_log {
                        None => farther.unlogged,
                        Some(access_log) => matches!(access_log, OrOff::Off),
                    },
                    waits: false,
                };
                chain.check(self, at, b);
                let varying = [$((
                    stringify!($key),
                    chain.$key.as_ref().is_some_and(|filter| filter.varies()),
                    self.$key.is_some(),
                )),+];
                let varying = varying.into_iter().filter(|(_, varies, _)| *varies);
                chain.check_vary(self, varying.map(|(key, _, is_new)| (key, is_new)), at, b);
                let empty = chain.names().next().is_none();
                let waits = [$(chain.$key.as_ref().is_some_and(|filter| filter.may_wait())),+];
                let waits = waits.contains(&true);
                Arc::new(Chain { empty, waits, ..chain })
            }
        }

        /// The policies of one route, ready to run.
        #[derive(Debug)]
        pub struct Chain {
            $(pub $key: Option<Arc<$filter>>,)+
            /// Most routes have few policies or none; this spares them the walk.
            empty: bool,
            /// `access_log: off`: where no level has an `access_log`, that of the document counts.
            unlogged: bool,
            /// Whether a request may be held up here for long.
            waits: bool,
        }

        impl Default for Chain {
            fn default() -> Chain {
                Chain { $($key: None,)+ empty: true, unlogged: false, waits: false }
            }
        }

        impl Chain {
            /// The keys of the policies that are present, in the order in which they run.
            pub fn names(&self) -> impl Iterator<Item = &'static str> {
                [$(self.$key.is_some().then_some(stringify!($key))),+].into_iter().flatten()
            }

            /// Whether there is none, so that callers need not even read the clock.
            pub fn is_empty(&self) -> bool {
                self.empty
            }

            /// Whether a request may be held up here for long.
            pub fn waits(&self) -> bool {
                self.waits
            }

            pub async fn request(
                &self,
                cx: &mut Cx,
                request: &RequestHeader,
                wall: SystemTime,
            ) -> Flow {
                if self.empty {
                    return Flow::Continue;
                }
                $(if let Some(filter) = &self.$key {
                    match filter.request(cx, request, wall).await {
                        Flow::Continue => {}
                        end => return end,
                    }
                })+
                Flow::Continue
            }

            /// # Errors
            /// When a policy ends the request.
            pub fn request_body(
                &self,
                cx: &Cx,
                body: &mut Option<Bytes>,
                end: bool,
            ) -> Result<(), Failure> {
                $(if let Some(filter) = &self.$key {
                    filter.request_body(cx, body, end)?;
                })+
                Ok(())
            }

            pub fn upstream(
                &self,
                cx: &Cx,
                request: &RequestHeader,
                upstream: &mut RequestHeader,
                wall: SystemTime,
            ) {
                if self.empty {
                    return;
                }
                $(if let Some(filter) = &self.$key {
                    filter.upstream(cx, request, upstream, wall);
                })+
            }

            /// The header as the client gets it, and what becomes of the body on its way there.
            pub fn response(
                &self,
                cx: &Cx,
                request: &RequestHeader,
                response: &mut ResponseHeader,
                wall: SystemTime,
            ) -> Transforms {
                let mut transforms = Transforms::default();
                if self.empty {
                    return transforms;
                }
                $(if let Some(filter) = &self.$key {
                    filter.response(cx, request, response, wall);
                    if let Some(transform) = filter.body(cx, request, response, wall) {
                        transforms.add(transform);
                    }
                })+
                transforms
            }
        }
    };
}

impl Chain {
    /// Reports policies that let nobody pass together, where `level` gives one of them.
    fn check(&self, level: &Filters, at: &At<'_>, b: &mut Build<'_>) {
        let key = match (&level.auth_basic, &level.jwt) {
            (Some(_), _) => "auth_basic",
            (_, Some(_)) => "jwt",
            _ => return,
        };
        if let (Some(jwt), Some(_)) = (&self.jwt, &self.auth_basic)
            && jwt.wants_authorization()
        {
            let what =
                "`jwt` and `auth_basic` both want `Authorization`, of which a request has one";
            b.error(&at.key(key), what)
                .hint("say where else the token is, as in `jwt: { token: $cookie_session }`, or turn one of them `off` here");
        }
    }

    /// Warns of an answer whose `Vary` says less than it depends on. `varying` are the policies that make it depend on something,
    /// and whether it is `level` that gives them.
    fn check_vary(
        &self,
        level: &Filters,
        mut varying: impl Iterator<Item = (&'static str, bool)>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) {
        let replaces = |headers: &Arc<Headers>| headers.replaces(&header::VARY);
        if !self.headers.as_ref().is_some_and(replaces) {
            return;
        }
        let is_here = level.headers.is_some();
        if let Some((key, _)) = varying.find(|(_, is_new)| *is_new || is_here) {
            let place = if is_here { "headers" } else { key };
            let what = format!(
                "`headers` replaces the `Vary` of `{key}`, so that caches give answers to clients they are not for"
            );
            b.warn(&at.key(place), what)
                .hint("`add: { Vary: ... }` leaves what is there");
        }
    }

    /// The access logs that a level has given, if one has: none of them with `off`.
    pub fn own_access_logs(&self) -> Option<&AccessLogs> {
        static NONE: AccessLogs = AccessLogs::none();
        match &self.access_log {
            Some(own) => Some(&own.0),
            None => self.unlogged.then_some(&NONE),
        }
    }
}

registry! {
    /// Gives each request an identifier, for logs on both sides. nginx: `$request_id` with `proxy_set_header` and
    /// `add_header`.
    // first: whatever ends the request later, its log line has the identifier
    request_id => RequestId,
    /// Lets clients in or refuses them, by address. nginx: `allow`, `deny`.
    // before all that counts, asks or remembers: whom it refuses costs nothing more
    access => Access,
    /// Limits how many requests may come in a time. nginx: `limit_req`, `limit_req_zone`, `limit_req_dry_run`.
    // before authentication, so that nobody can guess as fast as he likes or keep weir busy with hashes of passwords (nginx: both
    // belong to its phase before access)
    limit_req => LimitReq,
    /// Limits how many requests may be served at a time. nginx: `limit_conn`, `limit_conn_zone`, `limit_conn_status`,
    /// `limit_conn_dry_run`.
    // behind `limit_req`: who waits there is not served yet
    limit_conn => LimitConn,
    /// Answers for a site while it is worked at. nginx: `if (-f $file) { return 503; }`.
    // behind `access` and the limits: whoever may not come at all need not hear of it
    maintenance => Maintenance,
    /// Lets pages of other origins read answers. nginx: `add_header Access-Control-...`, and an `if` for `OPTIONS`.
    // before all that asks for credentials: a preflight request has none
    cors => Cors,
    /// Serves only what is asked for from a page of certain hosts, so that others do not embed it. nginx: `valid_referers`,
    /// `$invalid_referer`.
    // a look at one header: before all that costs more
    referer => Referer,
    /// Refuses requests with a body that is too large. nginx: `client_max_body_size`.
    // before all that reads a body
    body_limit => BodyLimit,
    /// Lets in who has a link that is signed and has not expired. nginx: `secure_link`, `secure_link_md5`.
    // of those that ask who the client is, first what costs least; each must let it in
    signed_url => SignedUrl,
    /// Lets in who has a token that is signed. nginx: `auth_jwt` and its kin, of the commercial version.
    // before `auth_basic`: a signature takes less time than the hash of a password
    jwt => Jwt,
    /// Lets in who has a name and its password. nginx: `auth_basic`, `auth_basic_user_file`.
    // behind what takes less time, and before what asks another server
    auth_basic => AuthBasic,
    /// Asks a service whether to let in. nginx: `auth_request`, `auth_request_set`.
    // last of those that ask who the client is: another server is asked only about those who may come otherwise
    auth_request => AuthRequest,
    /// Receives the whole body of a request before a backend is asked. nginx: `proxy_request_buffering on`,
    /// `client_body_buffer_size`, `client_body_temp_path`.
    // in no phase, and behind all that lets in: nobody sends a body to be refused then
    buffer_request => BufferRequest,
    /// Changes path, query and method of what the action sees. nginx: `rewrite ... break`, a path in `proxy_pass`,
    /// `proxy_method`, `set $args`.
    // behind all that lets in, which sees the path that the client asked for
    rewrite => Rewrite,
    /// Sets how long to wait for backends. nginx: `proxy_read_timeout` in a `location`.
    // it only notes what counts when a backend is asked
    timeouts => Timeouts,
    /// Sets how far ahead of its client an answer is read. nginx: `proxy_buffering on`, `proxy_buffers`,
    /// `proxy_max_temp_file_size`, `proxy_temp_path`.
    // beside `timeouts`: both are about the connection to the backend
    buffer_response => BufferResponse,
    /// Limits how fast an answer goes to its client. nginx: `limit_rate`, `limit_rate_after`.
    // it only notes what counts when the body of an answer is sent
    limit_rate => LimitRate,
    /// Shows own pages for errors. nginx: `error_page`, `proxy_intercept_errors`.
    // in no phase: where an error has no body of its own, it is asked for one
    errors => Errors,
    /// Decodes answers for clients that do not take them as they are. nginx: `gunzip`, `gunzip_buffers`.
    // before all that reads or changes bodies
    decompress => Decompress,
    /// Replaces texts in the bodies of answers. nginx: `sub_filter`, `sub_filter_types`, `sub_filter_once`.
    // behind `decompress`, for it finds nothing in a coded body, and before `compress`
    sub_filter => SubFilter,
    /// Compresses answers for clients that take them so. nginx: `gzip`, `gzip_types`, `gzip_min_length`, `gzip_comp_level`,
    /// `gzip_vary on`.
    // behind all that reads or changes bodies
    compress => Compress,
    /// Changes the flags, domains and paths of cookies that backends set. nginx: `proxy_cookie_flags`,
    /// `proxy_cookie_domain`, `proxy_cookie_path`.
    // before `headers`, which has the final word
    cookies => Cookies,
    /// Rewrites where backends send clients: `Location` and `Refresh`. nginx: `proxy_redirect`.
    // before `headers`, which has the final word
    location => Location,
    /// Tells browsers to be careful. nginx: an `add_header ... always` for each.
    // before `headers`, which has the final word
    security_headers => SecurityHeaders,
    /// Sets, adds, defaults and removes headers of the request to the backend and of the answer to the client. nginx:
    /// `proxy_set_header`, `proxy_hide_header`, `add_header ... always`.
    // behind all others that change a header: it has the final word on what leaves
    headers => Headers,
    /// Sends a copy of requests to another pool, whose answers nobody sees. nginx: `mirror`, with `split_clients` for a
    /// share.
    // behind whatever changes the request: the copy is of what a backend gets
    mirror => Mirror,
    /// Writes other access logs than the document's, or none. nginx: `access_log` in a `server` or a `location`.
    // in no phase: it says what becomes of the line about all the others
    access_log => AccessLog,
}

impl<'de> Deserialize<'de> for Filters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Filters, D::Error> {
        keys::deserialize(deserializer)
    }
}
