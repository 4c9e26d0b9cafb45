//! What each policy costs a request that it lets pass, by itself and all together.
//!
//! One round is what a proxied request spends in its chain: the request, the header that goes to the backend, the header
//! of the answer, and a body of 1 KiB in one piece. `none` is the same without a policy; what a policy costs is the
//! difference. Policies that ask another server (`auth_request`, `mirror`) or whose work is done elsewhere (`errors`, `access_log`,
//! `buffer_request`, `buffer_response`) are not here: what they cost is not spent in the chain. Nor is `signed_url`, one hash
//! like that of `jwt`.

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::runtime::{Handle, Runtime};

use weir::build::Build;
use weir::exchange::Cx;
use weir::exchange::transform::Then;
use weir::filter::{Chain, Filters, Flow};
use weir::issue::{At, Sources};
use weir::net::Connection;

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = chains
}
criterion_main!(benches);

/// In the order in which they run.
const POLICIES: [(&str, &str); 20] = [
    ("request_id", "{ header: X-Request-Id }"),
    (
        "access",
        "{ allow: [127.0.0.0/8, 10.0.0.0/8], deny: [all] }",
    ),
    (
        "limit_req",
        "{ key: $remote_addr, rate: 1000000/s, burst: 1000000 }",
    ),
    ("limit_conn", "{ key: $remote_addr, max: 1000 }"),
    ("maintenance", "{ file: {dir}/maintenance }"),
    (
        "cors",
        "{ origins: ['https://app.example'], methods: [PUT] }",
    ),
    ("referer", "{ allow: [self, '*.example'] }"),
    ("body_limit", "10MiB"),
    (
        "jwt",
        "{ secret: 0123456789abcdef0123456789abcdef, token: $http_x_token }",
    ),
    ("auth_basic", "{ users: {dir}/htpasswd }"),
    (
        "rewrite",
        "{ strip_prefix: /api, query: { remove: ['utm_*'] } }",
    ),
    ("timeouts", "{ read: 10s }"),
    ("limit_rate", "{ rate: 1GiB }"),
    ("decompress", "true"),
    (
        "sub_filter",
        "{ replace: { 'http://app.internal': 'https://$host' } }",
    ),
    ("compress", "{ algorithms: [gzip] }"),
    ("cookies", "{ flags: { '*': [secure, http_only] } }"),
    (
        "location",
        "{ from: 'http://backend/', to: 'https://$host/' }",
    ),
    ("security_headers", "strict"),
    (
        "headers",
        "{ request: { set: { X-Real-IP: $remote_addr } }, response: { set: { X-Id: $request_id }, remove: [X-Powered-By] } }",
    ),
];

fn chains(criterion: &mut Criterion) {
    // for the policies that look at files now and then
    let runtime = Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let mut group = criterion.benchmark_group("chain");
    let entry = |(key, value): &(&str, &str)| format!("{key}: {value}\n");
    let each = POLICIES.iter().map(|policy| (policy.0, entry(policy)));
    let all = POLICIES.iter().map(entry).collect();
    let sets = [("none", String::new())]
        .into_iter()
        .chain(each)
        .chain([("all", all)]);
    for (name, policies) in sets {
        let round = Round::new(&policies);
        // A password is checked on a thread of its own, once.
        runtime.block_on(round.request(&mut round.cx()));
        group.bench_function(name, |b| b.iter(|| round.run()));
    }
}

/// A request, its answer, and the policies that both go through.
struct Round {
    chain: Arc<Chain>,
    connection: Arc<Connection>,
    request: RequestHeader,
    answer: ResponseHeader,
    body: Bytes,
}

impl Round {
    fn new(policies: &str) -> Round {
        let policies = policies.replace("{dir}", concat!(env!("CARGO_MANIFEST_DIR"), "/conf"));
        let filters: Filters = serde_yaml::from_str(&policies).expect("policies");
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let chain = filters.compile(&At::Root, &Arc::default(), &mut b);
        assert!(b.issues.0.is_empty(), "{:?}", b.issues);
        let mut connection = Connection::default();
        connection.peer = Some(([127, 0, 0, 1], 50_000).into());
        connection.local = Some(([127, 0, 0, 1], 8080).into());
        let mut request =
            RequestHeader::build("GET", b"/api/things?id=7&utm_source=x", None).expect("a target");
        for (name, value) in [
            ("Host", "shop.example"),
            ("User-Agent", "bench/1"),
            ("Accept-Encoding", "gzip, br"),
            ("Origin", "https://app.example"),
            ("Referer", "https://shop.example/page"),
            ("Authorization", "Basic YWRhOnNlY3JldA=="),
            ("X-Token", &token()),
        ] {
            request.append_header(name, value).expect("a header");
        }
        let mut answer = ResponseHeader::build(200, None).expect("a status");
        for (name, value) in [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", "1024"),
            ("Set-Cookie", "session=1; Path=/"),
            ("X-Powered-By", "bench"),
        ] {
            answer.append_header(name, value).expect("a header");
        }
        Round {
            chain,
            connection: Arc::new(connection),
            request,
            answer,
            body: "<p>a link to http://app.internal/things</p>\n"
                .repeat(24)
                .split_at(1024)
                .0
                .to_owned()
                .into(),
        }
    }

    fn cx(&self) -> Cx {
        let mut cx = Cx::new(Instant::now(), self.connection.clone());
        cx.host.push_str("shop.example");
        cx.path.push_str("/api/things");
        cx
    }

    async fn request(&self, cx: &mut Cx) {
        let flow = self.chain.request(cx, &self.request, SystemTime::now());
        assert!(matches!(flow.await, Flow::Continue), "it lets pass");
    }

    fn pass(&self, cx: &mut Cx) {
        let mut request = pin!(self.request(cx));
        let mut now = Context::from_waker(Waker::noop());
        if request.as_mut().poll(&mut now).is_pending() {
            // A policy that looks at a file does so once in a second.
            Handle::current().block_on(request);
        }
    }

    fn run(&self) {
        let mut cx = self.cx();
        self.pass(&mut cx);
        let mut upstream = self.request.clone();
        let wall = SystemTime::now();
        self.chain.upstream(&cx, &self.request, &mut upstream, wall);
        let mut answer = self.answer.clone();
        let mut transforms = self.chain.response(&cx, &self.request, &mut answer, wall);
        let body = transforms.pass(self.body.clone(), Then::End);
        black_box((upstream, answer, body.expect("a body")));
    }
}

/// Signed by HS256, for an hour.
fn token() -> String {
    let encode = |bytes: &[u8]| {
        let text = boring::base64::encode_block(bytes);
        text.replace('+', "-").replace('/', "_").replace('=', "")
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let claims = format!(r#"{{"sub":"ada","exp":{}}}"#, now.as_secs() + 3600);
    let head = encode(br#"{"alg":"HS256"}"#);
    let message = format!("{head}.{}", encode(claims.as_bytes()));
    let secret = b"0123456789abcdef0123456789abcdef";
    let signature = boring::hash::hmac_sha256(secret, message.as_bytes()).expect("a signature");
    format!("{message}.{}", encode(&signature))
}
