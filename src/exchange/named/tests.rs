use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Instant, SystemTime};

use pingora::http::RequestHeader;
use proptest::prelude::*;

use super::*;
use crate::exchange::Cx;
use crate::exchange::cx::Connection;
use crate::issue::Sources;
use crate::value::{Cidr, Ratio};

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Document {
    map: IndexMap<String, map::Config>,
    geo: IndexMap<String, geo::Config>,
    split: IndexMap<String, split::Config>,
}

fn compile<'s>(yaml: &str, sources: &'s Sources) -> (Option<Arc<Named>>, Build<'s>) {
    let document: Document = serde_yaml::from_str(yaml).unwrap();
    let sections = Sections {
        map: &document.map,
        geo: &document.geo,
        split: &document.split,
    };
    let mut b = Build::new(sources);
    let named = sections.compile(&mut b);
    (named, b)
}

/// What `text` is for a request of `target`, with the variables of a document.
fn rendered(yaml: &str, target: &str, text: &str) -> String {
    let sources = Sources::default();
    let (named, mut b) = compile(yaml, &sources);
    let text = Text::compile(&At::Root, text, &mut b);
    assert!(b.issues.is_empty(), "{:?}", b.issues);
    let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
    cx.client = Some("10.1.2.3".parse().unwrap());
    cx.named = Memo::new(named);
    let view = View {
        cx: &cx,
        request: &RequestHeader::build("GET", target.as_bytes(), None).unwrap(),
        response: None,
        wall: SystemTime::UNIX_EPOCH,
    };
    text.unwrap().render(&view).into_owned()
}

/// What is wrong with a document, and with a text that uses its variables.
fn mistakes(yaml: &str, stage: Stage, text: &str) -> Vec<String> {
    let sources = Sources::default();
    let (_, mut b) = compile(yaml, &sources);
    Text::compile_for(stage, &At::Root.key("text"), text, &mut b);
    let issues = b.issues.0.iter();
    issues
        .map(|issue| format!("{}: {}", issue.path, issue.message))
        .collect()
}

#[test]
fn the_most_certain_pattern_goes_first() {
    let yaml = r#"
        map:
          $kind:
            from: "$arg_k"
            values:
              "~^re(?<rest>.)": "regex $rest"
              "~*^RE": late
              gold: exact
              "*.example": end
              "*.shop.example": longer end
              "re*": beginning
              "real*": longer beginning
              "": nothing
            default: "default of $arg_k"
    "#;
    for (key, expected) in [
        ("gold", "exact"),
        ("GOLD", "exact"),
        ("a.example", "end"),
        ("A.Shop.Example", "longer end"),
        (".shop.example", "longer end"),
        ("shop.example", "end"),
        ("red", "beginning"),
        ("really", "longer beginning"),
        ("golden", "default of golden"),
        ("", "nothing"),
    ] {
        assert_eq!(
            rendered(yaml, &format!("/?k={key}"), "$kind"),
            expected,
            "{key}"
        );
    }
    let yaml = r#"
        map:
          $kind:
            from: "$arg_k"
            values: { "~^a(.)(?<b>x)?": "$1-$b", "~*^b(.)": "$1", "~(?i)^c": c }
    "#;
    for (key, expected) in [
        ("aXx", "X-x"),
        ("aX", "X-"),
        ("BX", "X"),
        ("AX", ""),
        ("CX", "c"),
    ] {
        assert_eq!(
            rendered(yaml, &format!("/?k={key}"), "$kind"),
            expected,
            "{key}"
        );
    }
}

#[test]
fn variables_may_use_each_other_in_any_order() {
    let yaml = r#"
        map:
          $greeting: { from: "$place", values: { office: "hello $name", world: hi } }
          $name: { from: "$arg_n", values: { a: Anna }, default: "$arg_n" }
        geo:
          $place: { values: { 10.0.0.0/8: "$near" }, default: world }
        split:
          $near: { by: "$remote_addr", values: { office: 100% } }
    "#;
    assert_eq!(rendered(yaml, "/?n=a", "$greeting!"), "hello Anna!");
    assert_eq!(
        rendered(yaml, "/?n=b", "<$greeting, $name>"),
        "<hello b, b>"
    );
}

#[test]
fn an_address_from_elsewhere_may_be_none() {
    let yaml = r#"
        geo:
          $place:
            from: "$arg_a"
            values: { 10.0.0.0/8: office, 10.1.0.0/16: lab, 10.1.2.3: me, "2001:db8::/32": six, "::/0": any six }
            default: nowhere
    "#;
    for (address, expected) in [
        ("10.0.0.1", "office"),
        ("10.1.0.1", "lab"),
        ("10.1.2.3", "me"),
        ("10.1.2.4", "lab"),
        ("10.2.0.0", "office"),
        ("11.0.0.0", "nowhere"),
        ("2001:db8::1", "six"),
        ("2001:db9::1", "any six"),
        ("::ffff:10.1.2.3", "me"),
        ("255.255.255.255", "nowhere"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "any six"),
        ("x", "nowhere"),
        ("", "nowhere"),
    ] {
        assert_eq!(
            rendered(yaml, &format!("/?a={address}"), "$place"),
            expected,
            "{address}"
        );
    }
}

#[test]
fn mistakes_are_reported_at_their_keys() {
    for (yaml, expected) in [
        (
            "map: { tier: { from: $host, values: {} } }",
            "map.tier: `tier` is not the name of a variable",
        ),
        (
            "map: { $1: { from: $host, values: {} } }",
            "map.$1: `$1` is not the name of a variable",
        ),
        (
            "map: { $a-b: { from: $host, values: {} } }",
            "map.$a-b: `$a-b` is not the name of a variable",
        ),
        (
            "map: { $host: { from: $uri, values: {} } }",
            "map.$host: `$host` is one of weir's own variables",
        ),
        (
            "geo: { $arg_x: { values: {} } }",
            "geo.$arg_x: `$arg_x` is one of weir's own variables",
        ),
        (
            "{ map: { $a: { from: $uri, values: {} } }, geo: { $a: { values: {} } } }",
            "geo.$a: `$a` is defined in `map` already",
        ),
        (
            "map: { $a: { from: $hots, values: {} } }",
            "map.$a.from: no variable named `$hots`",
        ),
        (
            "map: { $a: { from: $host, values: { x: $y } } }",
            "map.$a.values.x: no variable named `$y`",
        ),
        (
            "map: { $a: { from: $host, values: {}, default: $y } }",
            "map.$a.default: no variable named `$y`",
        ),
        (
            "map: { $a: { from: $host, values: { '~(': x } } }",
            "map.$a.values.~(: not a regular expression: unclosed group",
        ),
        (
            "map: { $a: { from: $host, values: { '*': x } } }",
            "map.$a.values.*: `*` matches everything",
        ),
        (
            "map: { $a: { from: $host, values: { a*b: x } } }",
            "map.$a.values.a*b: `a*b` has its `*` elsewhere than at one end",
        ),
        (
            "map: { $a: { from: $host, values: { a: x, A: y } } }",
            "map.$a.values.A: `A` is given twice",
        ),
        (
            "geo: { $a: { values: { 10.0.0.1/8: x } } }",
            "geo.$a.values.\"10.0.0.1/8\": `10.0.0.1/8` is an address inside a range",
        ),
        (
            "geo: { $a: { values: { 10.0.0.1: x, 10.0.0.1/32: y } } }",
            "geo.$a.values.\"10.0.0.1/32\": `10.0.0.1/32` is given twice",
        ),
        (
            "split: { $a: { by: $host, values: { x: 60%, y: 50% } } }",
            "split.$a.values: the shares are 110% in all",
        ),
        (
            "split: { $a: { by: $host, values: {} } }",
            "split.$a.values: needs a value with its share",
        ),
        (
            "split: { $a: { by: $host, values: { x: 100% }, default: y } }",
            "split.$a.default: nothing is left for it",
        ),
        (
            "map: { $a: { from: $a, values: {} } }",
            "map.$a: `$a` needs itself: $a -> $a",
        ),
        (
            "{ map: { $a: { from: $b, values: {} }, $b: { from: $uri, values: { x: $c } } }, geo: { $c: { from: $a, values: {} } } }",
            "map.$a: `$a` needs itself: $a -> $b -> $c -> $a",
        ),
    ] {
        // who uses it has made no mistake
        let said = mistakes(yaml, Stage::Log, "$a");
        let [issue] = said.as_slice() else {
            let own: Vec<_> = said
                .iter()
                .filter(|issue| !issue.starts_with("text: no variable"))
                .collect();
            assert_eq!(own.len(), 1, "{yaml}: {said:?}");
            assert!(own[0].starts_with(expected), "{said:?}");
            continue;
        };
        assert!(issue.starts_with(expected), "{issue}");
    }
}

#[test]
fn a_variable_is_known_when_all_that_it_uses_is() {
    let yaml = "
        map:
          $late: { from: $early, values: { x: $status } }
          $later: { from: $late, values: { x: $request_time } }
          $early: { from: $uri, values: { x: y } }
    ";
    assert!(mistakes(yaml, Stage::Request, "$early").is_empty());
    assert!(mistakes(yaml, Stage::Response, "$late").is_empty());
    let late = "text: `$late` has no value here: it is known once there is a response";
    assert_eq!(mistakes(yaml, Stage::Request, "$late"), [late]);
    let later = "text: `$later` has no value here: it is known once the response has been sent";
    assert_eq!(mistakes(yaml, Stage::Response, "$later"), [later]);
}

#[test]
fn many_entries_are_found_as_fast_as_few() {
    let entries: String = (0..100_000)
        .map(|n| format!("key-{n}: v{n}, '*.z{n}.example': z{n}, "))
        .collect();
    let yaml = format!("map: {{ $v: {{ from: $arg_k, values: {{ {entries} }} }} }}");
    assert_eq!(rendered(&yaml, "/?k=key-99999", "$v"), "v99999");
    assert_eq!(rendered(&yaml, "/?k=www.z77777.example", "$v"), "z77777");
}

#[test]
fn a_split_keeps_to_its_shares_and_to_its_keys() {
    let yaml = "split: { $v: { by: $arg_k, values: { a: 20%, b: 0.5%, c: 30% }, default: d } }";
    let sources = Sources::default();
    let (named, _) = compile(yaml, &sources);
    let named = named.unwrap();
    let Choice::Split(_, shares) = &named.definitions[0].choice else {
        panic!("a split")
    };
    let mut counts = [0u32; 4];
    for key in 0..100_000 {
        let found = shares.find(format!("192.0.2.{key}").as_bytes());
        counts[found.unwrap_or(3)] += 1;
    }
    for (count, expected) in counts.into_iter().zip([20_000, 500, 30_000, 49_500]) {
        let off = f64::from(count) - f64::from(expected);
        assert!(off.abs() < 0.03 * f64::from(expected) + 100.0, "{counts:?}");
    }
}

fn network() -> impl Strategy<Value = Cidr> {
    // few different addresses, so that networks lie within each other
    let four = (0..4u32, 0..4u32, 0..=32u8).prop_map(|(high, low, prefix)| {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let bits = (high << 30 | low) & mask;
        format!("{}/{prefix}", Ipv4Addr::from_bits(bits))
            .parse()
            .unwrap()
    });
    let six = (0..4u128, 0..4u128, 0..=128u8).prop_map(|(high, low, prefix)| {
        let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let bits = (high << 126 | low) & mask;
        format!("{}/{prefix}", Ipv6Addr::from_bits(bits))
            .parse()
            .ok()
    });
    prop_oneof![
        four,
        six.prop_filter_map("IPv4 in disguise", |network| network)
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u32, 0..8u32).prop_map(|(high, low)| Ipv4Addr::from_bits(high << 30 | low).into()),
        (0..4u128, 0..8u128).prop_map(|(high, low)| Ipv6Addr::from_bits(high << 126 | low).into()),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
    ]
}

proptest! {
    #[test]
    fn networks_are_found_as_by_looking_at_all_of_them(
        networks in proptest::collection::vec(network(), 0..20),
        address in address(),
    ) {
        let mut networks = networks;
        networks.sort_unstable();
        networks.dedup();
        let indexed: Vec<_> = networks.iter().copied().zip(0..).collect();
        let holding = indexed.iter().filter(|(network, _)| network.contains(address));
        let longest = holding.max_by_key(|(network, _)| network.prefix());
        prop_assert_eq!(Networks::new(&indexed).find(address), longest.map(|(_, index)| *index));
    }

    #[test]
    fn a_share_that_grows_keeps_its_texts(text in ".{0,12}", percent in 0..50u32, more in 0..50u32) {
        let yaml = |percent: u32| format!("split: {{ $v: {{ by: $arg_k, values: {{ a: {percent}% }}, default: b }} }}");
        let find = |percent| {
            let sources = Sources::default();
            let (named, _) = compile(&yaml(percent), &sources);
            match &named.unwrap().definitions[0].choice {
                Choice::Split(_, shares) => shares.find(text.as_bytes()),
                _ => None,
            }
        };
        let before = find(percent);
        prop_assert_eq!(before, find(percent));
        if before.is_some() {
            prop_assert_eq!(before, find(percent + more));
        }
        let _ = Ratio::percent(percent);
    }

    #[test]
    fn any_pattern_is_taken_or_refused(pattern in "[~*a(.é]{0,6}", text in "[*a.é]{0,6}") {
        let config: map::Config = serde_json::from_value(serde_json::json!({
            "from": "$arg_k", "values": { pattern: "x" }
        })).unwrap();
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        if let Some(definition) = config.compile(&At::Root, &mut b) {
            let Choice::Map(_, patterns) = &definition.choice else { panic!("a map") };
            let _ = patterns.find(text.as_bytes(), &mut Vec::new());
        } else {
            prop_assert!(b.issues.has_errors());
        }
    }
}
