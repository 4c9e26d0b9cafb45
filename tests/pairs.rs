//! Any two policies on one route: both do their part, or weir refuses the file and says why.
//!
//! Each policy has a row here, with a value that lets the request below pass, what it needs for that and what shows that it
//! did its part; and, if it can end a request, a value by which it does. All pairs are made of these rows.

use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::hash::hmac_sha256;
use serde_json::Value;

use crate::harness::client::{Request, Response, get};
use crate::harness::origin::{Origin, Recorded};
use crate::harness::{Setup, Weir, one_site};

/// One policy. The rows stand in the order in which policies run.
struct Row {
    key: &'static str,
    /// In YAML.
    passes: &'static str,
    /// What the request must bring to pass.
    bring: fn(Request) -> Request,
    /// Whether the policy did its part for a request that passed.
    shows: fn(&Seen) -> bool,
    /// The same for an answer by which another policy ended the request.
    marks: fn(&Seen) -> bool,
    /// A value that ends a request that brings the same, and the status of that.
    ends: Option<(&'static str, u16)>,
}

/// What became of a request.
struct Seen {
    answer: Response,
    /// The body, decoded.
    body: String,
    /// What the backend got, if it was asked.
    asked: Option<Recorded>,
}

impl Seen {
    fn asked(&self, test: impl FnOnce(&Recorded) -> bool) -> bool {
        self.asked.as_ref().is_none_or(test)
    }

    fn says(&self, name: &str, value: &str) -> bool {
        self.answer.header(name) == Some(value)
    }
}

const ROW: Row = Row {
    key: "",
    passes: "",
    bring: |request| request,
    shows: |_| true,
    marks: |_| true,
    ends: None,
};

const ROWS: &[Row] = &[
    Row {
        key: "request_id",
        passes: "{ header: X-Id }",
        shows: |seen| {
            let id = seen.answer.header("x-id");
            id.is_some_and(|id| id.len() == 32) && seen.asked(|asked| asked.header("x-id") == id)
        },
        marks: |seen| seen.answer.header("x-id").is_some_and(|id| id.len() == 32),
        ..ROW
    },
    Row {
        key: "access",
        passes: "{ allow: [127.0.0.1], deny: [all] }",
        ends: Some(("{ deny: [127.0.0.1] }", 403)),
        ..ROW
    },
    Row {
        key: "limit_req",
        passes: "{ key: $remote_addr, rate: 1000/s, burst: 100000 }",
        ends: Some(("{ key: $remote_addr, rate: 1/h }", 429)),
        ..ROW
    },
    Row {
        key: "limit_conn",
        passes: "{ key: $remote_addr, max: 100 }",
        ..ROW
    },
    Row {
        key: "maintenance",
        passes: "{ file: open }",
        ends: Some(("{ file: closed, status: 410 }", 410)),
        ..ROW
    },
    Row {
        key: "cors",
        passes: "{ origins: ['https://app.example'] }",
        bring: |request| request.header("Origin", "https://app.example"),
        shows: |seen| seen.says("access-control-allow-origin", "https://app.example"),
        marks: |seen| seen.says("access-control-allow-origin", "https://app.example"),
        ..ROW
    },
    Row {
        key: "referer",
        passes: "{ allow: [good.example], empty: false }",
        bring: |request| request.header("Referer", "http://good.example/"),
        ends: Some(("{ allow: [other.example], empty: false }", 403)),
        ..ROW
    },
    Row {
        key: "body_limit",
        passes: "5B",
        bring: |request| Request {
            method: "POST".to_owned(),
            body: b"hello".to_vec(),
            ..request
        },
        shows: |seen| seen.asked(|asked| asked.body == b"hello"),
        ends: Some(("4B", 413)),
        ..ROW
    },
    Row {
        key: "signed_url",
        passes: "{ secret: 0123456789abcdef }",
        bring: |request| {
            let expires = seconds(600);
            let message = format!("{}\n{expires}", request.target);
            let signature = encode(&hmac_sha256(b"0123456789abcdef", message.as_bytes()).unwrap());
            let target = &request.target;
            Request {
                target: format!("{target}?expires={expires}&signature={signature}"),
                ..request
            }
        },
        ends: Some(("{ secret: another9abcdef01 }", 403)),
        ..ROW
    },
    Row {
        key: "jwt",
        passes: "{ secret: 0123456789abcdef0123456789abcdef, token: $http_x_token }",
        bring: |request| request.header("X-Token", &token()),
        ends: Some((
            "{ secret: another9abcdef0123456789abcdef01, token: $http_x_token }",
            401,
        )),
        ..ROW
    },
    Row {
        key: "auth_basic",
        passes: "{ users: htpasswd }",
        bring: |request| request.header("Authorization", "Basic YTpi"),
        shows: |seen| seen.asked(|asked| asked.header("authorization").is_none()),
        ends: Some(("{ users: others }", 401)),
        ..ROW
    },
    Row {
        key: "auth_request",
        passes: "{ pool: yes, path: /check, headers: { copy: [X-User] } }",
        shows: |seen| seen.asked(|asked| asked.header("x-user") == Some("ada")),
        ends: Some(("{ pool: no, path: /check }", 403)),
        ..ROW
    },
    // its part is in tests/buffer_request.rs: the requests here have no body
    Row {
        key: "buffer_request",
        passes: "1MiB",
        ..ROW
    },
    Row {
        key: "rewrite",
        passes: "{ add_prefix: /new }",
        shows: |seen| seen.asked(|asked| asked.target().starts_with("/new/")),
        ..ROW
    },
    Row {
        key: "timeouts",
        passes: "{ read: 20s, total: 30s }",
        ..ROW
    },
    // its part is in tests/buffer_response.rs
    Row {
        key: "buffer_response",
        passes: "1MiB",
        ..ROW
    },
    Row {
        key: "limit_rate",
        passes: "{ rate: 1GiB }",
        ..ROW
    },
    Row {
        key: "errors",
        passes: "{ 400-599: { body: '<p>an old page, $status', content_type: text/html }, intercept: true }",
        marks: |seen| {
            let page = format!("page, {}", seen.answer.status);
            seen.body.ends_with(&page) && seen.answer.complete
        },
        ..ROW
    },
    Row {
        key: "decompress",
        passes: "{ always: true }",
        ..ROW
    },
    Row {
        key: "sub_filter",
        passes: "{ replace: { 'an old': 'a new' } }",
        shows: |seen| seen.body.contains("a new text"),
        marks: |seen| !seen.body.contains("an old"),
        ..ROW
    },
    Row {
        key: "compress",
        passes: "{ algorithms: [gzip], min_size: 1B }",
        bring: |request| request.header("Accept-Encoding", "gzip"),
        shows: |seen| seen.says("content-encoding", "gzip"),
        marks: |seen| seen.answer.body.is_empty() || seen.says("content-encoding", "gzip"),
        ..ROW
    },
    Row {
        key: "cookies",
        passes: "{ flags: { '*': [http_only] } }",
        shows: |seen| seen.asked.is_none() || seen.says("set-cookie", "a=b; HttpOnly"),
        ..ROW
    },
    Row {
        key: "location",
        passes: "{ from: 'http://backend/', to: 'https://front/' }",
        shows: |seen| seen.asked.is_none() || seen.says("location", "https://front/x"),
        ..ROW
    },
    Row {
        key: "security_headers",
        passes: "basic",
        shows: |seen| seen.says("x-content-type-options", "nosniff"),
        marks: |seen| seen.says("x-content-type-options", "nosniff"),
        ..ROW
    },
    Row {
        key: "headers",
        passes: "{ request: { set: { X-A: $uri } }, response: { set: { X-B: $status } } }",
        shows: |seen| {
            let uri = seen.asked(|asked| asked.header("x-a").is_some_and(|uri| uri.contains('/')));
            uri && seen.says("x-b", "200")
        },
        marks: |seen| seen.says("x-b", &seen.answer.status.to_string()),
        ..ROW
    },
    Row {
        key: "mirror",
        passes: "{ pool: yes }",
        ..ROW
    },
    Row {
        key: "access_log",
        passes: "{ file: own.log, format: '$request_uri $status' }",
        ..ROW
    },
];

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 18\r\nConnection: close\r\nSet-Cookie: a=b\r\n\
    Location: http://backend/x\r\n\r\n<p>an old text</p>";

/// The actions that answer: a pool, and weir itself.
const ACTIONS: [&str; 2] = [
    "proxy: app",
    "respond: { body: '<p>an old text</p>', content_type: text/html }",
];

#[test]
fn every_policy_has_a_row() {
    let printed = Setup::new().run(&["schema"]).stdout;
    let schema: Value = serde_json::from_str(&printed).expect("a schema");
    let policies = schema["$defs"]["Filters"]["properties"].as_object();
    let mut policies: Vec<_> = policies.expect("policies").keys().collect();
    let mut rows: Vec<_> = ROWS.iter().map(|row| row.key).collect();
    policies.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, policies);
}

#[test]
fn any_two_that_let_a_request_pass_both_do_their_part() {
    let scene = Scene::new(|one, other| Some([one.passes, other.passes]));
    let mut wrong = Vec::new();
    for (one, other, action) in scene.pairs() {
        let seen = scene.ask(one, other, action);
        let names = format!("{} and {} with {action}", one.key, other.key);
        let answer = &seen.answer;
        if answer.status != 200 || !answer.complete {
            wrong.push(format!("{names}: {answer:?}"));
        }
        if action == ACTIONS[0] && seen.asked.is_none() {
            wrong.push(format!("{names}: the backend was not asked"));
        }
        for row in [one, other] {
            if !(row.shows)(&seen) {
                let asked = seen.asked.as_ref().map(Recorded::headers);
                wrong.push(format!("{names}: no {}: {answer:?} {asked:?}", row.key));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let logged = scene.pairs().filter(|(one, other, _)| {
        [one.key, other.key].contains(&"access_log") // which stands in a pair once
    });
    let lines = scene.weir.lines("own.log", logged.count());
    assert!(lines.iter().all(|line| line.ends_with(" 200")), "{lines:?}");
}

#[test]
fn whoever_ends_a_request_first_is_marked_by_those_who_mark_answers() {
    // the one that comes first ends it; the other would let it pass
    let scene = Scene::new(|one, other| Some([one.ends?.0, other.passes]));
    let mirrored = Scene::new(|one, other| Some([one.passes, other.ends?.0]));
    let mut wrong = Vec::new();
    for (scene, first) in [(&scene, true), (&mirrored, false)] {
        for (one, other, action) in scene.pairs() {
            let (ending, marking) = if first { (one, other) } else { (other, one) };
            let seen = scene.ask(one, other, action);
            let (_, status) = ending.ends.expect("it ends requests");
            let is_right = seen.answer.status == status && seen.answer.complete;
            if !is_right || seen.asked.is_some() || !(marking.marks)(&seen) {
                let names = format!("{} ends, {} marks", ending.key, marking.key);
                wrong.push(format!("{names} with {action}: {:?}", seen.answer));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn of_two_that_end_a_request_the_first_in_order_does() {
    let scene = Scene::new(|one, other| Some([one.ends?.0, other.ends?.0]));
    let mut wrong = Vec::new();
    for (one, other, action) in scene.pairs() {
        let seen = scene.ask(one, other, action);
        let (_, status) = one.ends.expect("it ends requests");
        if seen.answer.status != status || seen.asked.is_some() {
            let names = format!("{} before {}", one.key, other.key);
            wrong.push(format!("{names} with {action}: {:?}", seen.answer));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A weir with a route for each pair and each action.
struct Scene {
    weir: Weir,
    app: Origin,
    _auth: [Origin; 2],
    values: fn(&Row, &Row) -> Option<[&'static str; 2]>,
}

impl Scene {
    /// `values` are those of the two policies of a pair, if it belongs to the scene.
    fn new(values: fn(&Row, &Row) -> Option<[&'static str; 2]>) -> Scene {
        let app = Origin::raw(ANSWER);
        let answer = |line| {
            Origin::raw(&format!(
                "{line}\r\nX-User: ada\r\nContent-Length: 0\r\n\r\n"
            ))
        };
        let auth = [answer("HTTP/1.1 200 OK"), answer("HTTP/1.1 403 Forbidden")];
        let mut routes = String::new();
        for (one, other, action) in pairs(values) {
            let [first, second] = values(one, other).expect("it belongs to the scene");
            routes += &format!(
                "      - match: {{ path: {} }}\n        {}: {first}\n        {}: {second}\n        {action}\n",
                path(one, other, action),
                one.key,
                other.key,
            );
        }
        let document = format!(
            "
listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
pools:
  app: {{ backends: ['{{app}}'] }}
  yes: {{ backends: ['{{yes}}'] }}
  no: {{ backends: ['{{no}}'] }}
sites:
  main:
    hosts: ['*']
    routes:
{routes}"
        );
        let weir = Weir::with("app", &app)
            .with("yes", &auth[0])
            .with("no", &auth[1])
            .file("closed", "")
            .file("htpasswd", "a:{SHA}6dcfXufJLW3J6S/9rRe4vUlBj5g=\n")
            .file("others", "b:{SHA}6dcfXufJLW3J6S/9rRe4vUlBj5g=\n")
            .start(&document);
        Scene {
            weir,
            app,
            _auth: auth,
            values,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&'static Row, &'static Row, &'static str)> {
        pairs(self.values)
    }

    /// What becomes of a request that brings what both policies want to see.
    fn ask(&self, one: &Row, other: &Row, action: &str) -> Seen {
        let request = (other.bring)((one.bring)(get(&path(one, other, action))));
        if [one.key, other.key].contains(&"limit_req") {
            // which lets the first one pass, whatever the limit
            self.weir.fetch(&request);
        }
        let before = self.app.hits();
        let answer = self.weir.fetch(&request);
        let asked = (self.app.hits() > before).then(|| self.app.requests().pop());
        let body = match answer.header("content-encoding") {
            Some("gzip") => {
                let mut text = String::new();
                let mut decoder = flate2::read::GzDecoder::new(&*answer.body);
                decoder.read_to_string(&mut text).expect("gzip");
                text
            }
            _ => answer.text().to_owned(),
        };
        Seen {
            answer,
            body,
            asked: asked.flatten(),
        }
    }
}

fn pairs(
    values: fn(&Row, &Row) -> Option<[&'static str; 2]>,
) -> impl Iterator<Item = (&'static Row, &'static Row, &'static str)> {
    let pairs = ROWS.iter().enumerate().flat_map(|(index, one)| {
        let others = ROWS[index + 1..].iter();
        others.map(move |other| (one, other))
    });
    let pairs = pairs.filter(move |(one, other)| values(one, other).is_some());
    pairs.flat_map(|(one, other)| ACTIONS.map(|action| (one, other, action)))
}

/// The path of a pair's route.
fn path(one: &Row, other: &Row, action: &str) -> String {
    format!("/{}/{}/{}", one.key, other.key, &action[..5])
}

fn seconds(later: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now + Duration::from_secs(later)).as_secs()
}

/// Base64 for URLs.
fn encode(bytes: &[u8]) -> String {
    let text = boring::base64::encode_block(bytes);
    text.replace('+', "-").replace('/', "_").replace('=', "")
}

fn token() -> String {
    let claims = format!(r#"{{"sub":"ada","exp":{}}}"#, seconds(600));
    let message = format!(
        "{}.{}",
        encode(br#"{"alg":"HS256"}"#),
        encode(claims.as_bytes())
    );
    let secret = b"0123456789abcdef0123456789abcdef";
    format!(
        "{message}.{}",
        encode(&hmac_sha256(secret, message.as_bytes()).unwrap())
    )
}

#[test]
fn token_and_password_cannot_stand_in_one_header() {
    let refused = |jwt: &str| {
        let setup = Setup::new().file("htpasswd", "a:{SHA}6dcfXufJLW3J6S/9rRe4vUlBj5g=\n");
        let site = format!(
            "
            jwt: {jwt}
            routes:
              - match: {{ path: /a }}
                jwt: off
                auth_basic: {{ users: htpasswd }}
                respond: ok
              - auth_basic: {{ users: htpasswd }}
                respond: ok
            "
        );
        setup.write_config(&one_site(&site));
        setup.run(&["-t", "-c", "weir.yaml"])
    };
    let run = refused("{ secret: 0123456789abcdef0123456789abcdef }");
    assert_eq!(run.status, 1);
    let message =
        "sites.main.routes[1].auth_basic: `jwt` and `auth_basic` both want `Authorization`";
    assert!(run.stderr.contains(message), "{}", run.stderr);
    assert_eq!(run.stderr.matches("both want").count(), 1, "{}", run.stderr);
    let run = refused("{ secret: 0123456789abcdef0123456789abcdef, token: $cookie_t }");
    assert_eq!(run.status, 0, "{}", run.stderr);
}
