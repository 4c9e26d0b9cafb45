//! Slow start, coming back, and waiting: what depends on more than the balance.

use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use crate::pool::peer::Connector;
use pingora::protocols::l4::socket::SocketAddr;

use super::*;
use crate::issue::{At, Issues};
use crate::pool::{Place, queue, sticky};

fn member(port: u16, weight: u32, max_conns: Option<u64>) -> Arc<Member> {
    let place = Place {
        position: usize::from(port),
        address: SocketAddr::Inet(([127, 0, 0, 1], port).into()),
        authority: "app:80".into(),
        weight,
        backup: false,
        max_conns,
    };
    Arc::new(Member::new(place, &Connector::plain()))
}

fn roster(rules: Rules, members: &[Arc<Member>], now: Instant) -> Roster {
    let roster = Roster::new(rules, None);
    roster.set_members(members.into(), now);
    roster
}

fn pick(roster: &Roster, choice: &Choice) -> InFlight {
    match roster.pick(choice, &mut Tried::default()) {
        Pick::Member(member) => member,
        nobody => panic!("{nobody:?}"),
    }
}

/// How many of 1,000 requests at this moment come to `member`.
fn picks(roster: &Roster, member: &Arc<Member>, now: Instant) -> usize {
    let choice = |_| Choice::any(now, 0);
    let picks = (0..1000).map(choice).map(|choice| pick(roster, &choice));
    picks.filter(|picked| Arc::ptr_eq(picked, member)).count()
}

mod slow_start {
    use super::*;

    fn rules() -> Rules {
        Rules {
            slow_start: Some(Duration::from_secs(30)),
            ..Rules::default()
        }
    }

    fn set_draining(roster: &Roster, member: &Member, draining: bool, now: Instant) {
        member.set_draining(draining, SystemTime::UNIX_EPOCH);
        roster.refresh(now);
    }

    #[test]
    fn a_member_that_comes_back_gets_its_share_step_by_step() {
        let members = [member(1, 1, None), member(2, 1, None)];
        let start = Instant::now();
        let roster = roster(rules(), &members, start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(picks(&roster, &members[0], start), 500, "all start at once");
        set_draining(&roster, &members[0], true, after(1));
        assert_eq!(picks(&roster, &members[0], after(99)), 0);
        set_draining(&roster, &members[0], false, after(100));
        // of 1000, as ten to so many tenths
        for (seconds, due) in [
            (100, 91),
            (102, 91),
            (104, 166),
            (114, 333),
            (129, 500),
            (131, 500),
        ] {
            let picks = picks(&roster, &members[0], after(seconds));
            assert!(picks.abs_diff(due) <= 2, "{picks} after {seconds} s");
        }
        assert_eq!(roster.current.load().until, None, "it is over");
    }

    #[test]
    fn heavy_weights_grow_in_steps_of_their_own() {
        let members = [
            member(1, 1000, None),
            member(2, 997, None),
            member(3, 2, None),
        ];
        let start = Instant::now();
        let roster = roster(rules(), &members, start);
        set_draining(&roster, &members[0], true, start);
        set_draining(&roster, &members[0], false, start);
        // 300 beside 999
        let picks = picks(&roster, &members[0], start + Duration::from_secs(7));
        assert!(picks.abs_diff(231) <= 2, "{picks}");
    }

    #[test]
    fn a_change_in_between_does_not_start_again() {
        let members = [member(1, 1, None), member(2, 1, None), member(3, 1, None)];
        let start = Instant::now();
        let roster = roster(rules(), &members[..2], start);
        let after = |seconds| start + Duration::from_secs(seconds);
        set_draining(&roster, &members[0], true, start);
        set_draining(&roster, &members[0], false, start);
        set_draining(&roster, &members[1], true, after(14));
        set_draining(&roster, &members[1], false, after(16));
        // six tenths and one
        let picks = picks(&roster, &members[0], after(16));
        assert!(picks.abs_diff(857) <= 2, "{picks}");
    }

    #[test]
    fn a_new_member_starts_slowly_over_reloads_too() {
        let [old, new] = [member(1, 2, None), member(2, 2, None)];
        let start = Instant::now();
        let before = roster(rules(), std::slice::from_ref(&old), start);
        // what a reload does: other members, the same at heart
        let adopt = |previous: &Arc<Member>| {
            let place = previous.place().clone();
            let mut member = Member::new(place, &Connector::plain());
            member.adopt(previous);
            Arc::new(member)
        };
        let after = Roster::new(rules(), Some(&before));
        let [old, new] = [adopt(&old), adopt(&new)];
        after.set_members([old.clone(), new.clone()].into(), start);
        assert!(picks(&after, &new, start).abs_diff(91) <= 2);
        let later = start + Duration::from_secs(28);
        let again = Roster::new(rules(), Some(&after));
        let [old, new] = [adopt(&old), adopt(&new)];
        again.set_members([old, new.clone()].into(), later);
        assert!(picks(&again, &new, later).abs_diff(500) <= 2);
    }
}

mod sticky_clients {
    use super::*;

    fn rules() -> Rules {
        let yaml = "{ cookie: id, secret: x }";
        let config: sticky::Config = serde_yaml::from_str(yaml).expect("it fits");
        let sticky = config.compile("app", None, &At::Root, &mut Issues::default());
        Rules {
            sticky: Some(sticky.expect("nothing is wrong")),
            ..Rules::default()
        }
    }

    #[test]
    fn a_client_comes_back_as_long_as_its_member_can_serve() {
        let members = [
            member(1, 1, None),
            member(2, 1, Some(1)),
            member(3, 1, None),
        ];
        let now = Instant::now();
        let roster = roster(rules(), &members, now);
        let token = members[1].badge().map(|badge| badge.token);
        let choice = Choice {
            token,
            ..Choice::any(now, 0)
        };
        let comes_back = || Arc::ptr_eq(&pick(&roster, &choice), &members[1]);
        assert!((0..10).all(|_| comes_back()));
        let full = pick(&roster, &choice);
        assert!(!comes_back());
        drop(full);
        assert!(comes_back());
        members[1].set_draining(true, SystemTime::UNIX_EPOCH);
        roster.refresh(now);
        assert!(!comes_back());
        // not twice in one request
        members[1].set_draining(false, SystemTime::UNIX_EPOCH);
        roster.refresh(now);
        let mut tried = Tried::default();
        let order: Vec<Pick> = (0..4).map(|_| roster.pick(&choice, &mut tried)).collect();
        assert!(matches!(&order[0], Pick::Member(first) if Arc::ptr_eq(first, &members[1])));
        assert!(matches!(order[3], Pick::Exhausted));
    }

    #[test]
    fn tokens_differ_by_member_pool_and_secret_and_by_nothing_else() {
        let token = |pool: &str, secret: &str, port: u16| {
            let yaml = format!("{{ cookie: id, ttl: 1h, secret: {secret} }}");
            let config: sticky::Config = serde_yaml::from_str(&yaml).expect("it fits");
            let sticky = config.compile(pool, None, &At::Root, &mut Issues::default());
            let badge = sticky
                .expect("nothing is wrong")
                .badge(&member(port, 1, None));
            badge.expect("HMAC works").token
        };
        let first = token("app", "x", 1);
        assert_eq!(first, token("app", "x", 1));
        for other in [
            token("app", "x", 2),
            token("app", "y", 1),
            token("ppa", "x", 1),
        ] {
            assert_ne!(first, other);
        }
    }
}

mod waiting {
    use super::*;

    fn rules(size: usize) -> Rules {
        let yaml = format!("{{ size: {size}, timeout: 1m }}");
        let config: queue::Config = serde_yaml::from_str(&yaml).expect("it fits");
        let queue = config.compile(true, &At::Root, &mut Issues::default());
        Rules {
            queue: Some(queue.expect("nothing is wrong")),
            ..Rules::default()
        }
    }

    /// A request that may have to wait.
    struct Request<'r>(std::pin::Pin<Box<dyn Future<Output = Pick> + 'r>>);

    impl<'r> Request<'r> {
        fn new(roster: &'r Roster, tried: &'r mut Tried) -> Request<'r> {
            let mut choice = Choice::any(Instant::now(), 0);
            Request(Box::pin(async move {
                roster.take(&mut choice, tried, Instant::now).await
            }))
        }

        /// What became of it by now.
        fn look(&mut self) -> Option<Pick> {
            let mut context = Context::from_waker(Waker::noop());
            match self.0.as_mut().poll(&mut context) {
                Poll::Ready(pick) => Some(pick),
                Poll::Pending => None,
            }
        }

        fn member(&mut self) -> Option<InFlight> {
            match self.look()? {
                Pick::Member(member) => Some(member),
                nobody => panic!("{nobody:?}"),
            }
        }
    }

    #[test]
    fn requests_are_served_in_the_order_in_which_they_came() {
        let roster = roster(rules(2), &[member(1, 1, Some(1))], Instant::now());
        let [mut a, mut b, mut c, mut d, mut e]: [Tried; 5] = Default::default();
        let running = Request::new(&roster, &mut a).member().expect("room");
        let mut first = Request::new(&roster, &mut b);
        assert!(first.member().is_none());
        let mut second = Request::new(&roster, &mut c);
        assert!(second.member().is_none());
        // no place to wait
        let third = Request::new(&roster, &mut d).look();
        assert!(matches!(third, Some(Pick::Busy)));

        drop(running);
        assert!(second.member().is_none(), "it is not its turn");
        let mut fourth = Request::new(&roster, &mut e);
        assert!(
            matches!(fourth.look(), Some(Pick::Busy)),
            "nobody overtakes"
        );
        let running = first.member().expect("its turn");
        drop(first);
        assert!(second.member().is_none(), "no room");
        drop(running);
        assert!(second.member().is_some());
        drop(second);
        assert!(!roster.queue.is_awaited());
    }

    #[test]
    fn who_gives_up_at_the_front_lets_the_next_one_come() {
        let members = [member(1, 1, Some(1))];
        let roster = roster(rules(9), &members, Instant::now());
        let [mut b, mut c]: [Tried; 2] = Default::default();
        let running = members[0].begin();
        let mut first = Request::new(&roster, &mut b);
        let mut second = Request::new(&roster, &mut c);
        assert!(first.member().is_none() && second.member().is_none());
        drop(running);
        drop(first);
        assert!(second.member().is_some());
    }

    #[test]
    fn a_second_try_does_not_wait_behind_those_that_can_take_any_member() {
        let members = [member(1, 1, Some(1)), member(2, 1, Some(1))];
        let roster = roster(rules(9), &members, Instant::now());
        let (mut tried, mut fresh) = (Tried::default(), Tried::default());
        tried.insert(members[0].clone());
        let (one, two) = (members[0].begin(), members[1].begin());
        let mut second_try = Request::new(&roster, &mut tried);
        let mut first_try = Request::new(&roster, &mut fresh);
        assert!(second_try.member().is_none() && first_try.member().is_none());
        drop(one);
        assert!(second_try.member().is_none(), "it was there already");
        let one = first_try.member();
        assert!(one.is_some());
        drop(two);
        let two = second_try.member().expect("room at last");
        assert!(Arc::ptr_eq(&two, &members[1]));
    }

    #[test]
    fn a_member_that_comes_up_ends_the_wait() {
        let members = [member(1, 1, Some(1)), member(2, 1, Some(1))];
        let now = Instant::now();
        let roster = roster(rules(9), &members, now);
        let mut tried = Tried::default();
        members[1].set_draining(true, SystemTime::UNIX_EPOCH);
        roster.refresh(now);
        let running = members[0].begin();
        let mut request = Request::new(&roster, &mut tried);
        assert!(request.member().is_none());
        members[1].set_draining(false, SystemTime::UNIX_EPOCH);
        roster.refresh(now);
        assert!(request.member().is_some());
        drop(running);
    }

    #[test]
    fn a_wait_goes_on_over_a_reload() {
        let before = roster(rules(9), &[member(1, 1, Some(1))], Instant::now());
        let running = before.members()[0].begin();
        let mut tried = Tried::default();
        let place = before.members()[0].place().clone();
        let mut adopted = Member::new(place, &Connector::plain());
        adopted.adopt(&before.members()[0]);
        let after = Roster::new(rules(9), Some(&before));
        after.set_members([Arc::new(adopted)].into(), Instant::now());
        let mut request = Request::new(&after, &mut tried);
        assert!(request.member().is_none());
        drop(running);
        assert!(request.member().is_some());
    }

    #[test]
    fn nobody_waits_for_room_that_is_there() {
        const REQUESTS: usize = 200;
        let members = [member(1, 1, Some(2)), member(2, 1, Some(1))];
        let roster = Arc::new(roster(rules(9999), &members, Instant::now()));
        let request = |roster: Arc<Roster>| async move {
            let mut tried = Tried::default();
            let mut choice = Choice::any(Instant::now(), fastrand::u64(..));
            let pick = roster.take(&mut choice, &mut tried, Instant::now).await;
            tokio::task::yield_now().await;
            matches!(pick, Pick::Member(_))
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            for _ in 0..20 {
                let requests = (0..REQUESTS).map(|_| tokio::spawn(request(roster.clone())));
                for request in requests.collect::<Vec<_>>() {
                    let served = tokio::time::timeout(Duration::from_secs(20), request);
                    let served = served.await.expect("nobody is forgotten");
                    assert!(served.expect("no panic"));
                }
            }
        });
        assert!(members.iter().all(|member| member.load().in_flight() == 0));
        assert!(!roster.queue.is_awaited());
    }
}
