//! Did you mean ...?

/// The candidate that `word` was most likely meant to be, if one is near enough to be worth saying.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong; of a short word, one.
    let tolerance = (word.chars().count() / 3).max(1);
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&folded, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= tolerance && *distance < candidate.chars().count()
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A hint for a name that does not exist: ``did you mean `app`? pools are: app, assets``. `listed` introduces the
/// names that there are (`pools are`). Long lists are left out when there is a good guess, and cut when there is none.
pub fn hint<'a>(word: &str, listed: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let guess =
        suggest(word, candidates.iter().copied()).map(|name| format!("did you mean `{name}`?"));
    if candidates.is_empty() {
        return format!("{listed}: (none)");
    }
    let list = match candidates.get(..LISTED) {
        Some(first) if candidates.len() > LISTED => format!("{listed}: {}, ...", first.join(", ")),
        _ => format!("{listed}: {}", candidates.join(", ")),
    };
    match guess {
        Some(guess) if candidates.len() > SHORT_LIST => guess,
        Some(guess) => format!("{guess} {list}"),
        None => list,
    }
}

/// Typing slips: a letter too many, too few or wrong, or two swapped. Dashes and underscores are easily confused.
fn distance(word: &str, candidate: &str) -> usize {
    strsim::damerau_levenshtein(
        &word.replace('-', "_"),
        &candidate.to_lowercase().replace('-', "_"),
    )
}

const SHORT_LIST: usize = 12;
const LISTED: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let names = ["app", "assets", "keepalive", "max_conns"];
        assert_eq!(suggest("ap", names), Some("app"));
        assert_eq!(suggest("asets", names), Some("assets"));
        assert_eq!(suggest("keep_alive", names), Some("keepalive"));
        assert_eq!(suggest("max-conns", names), Some("max_conns"));
        assert_eq!(suggest("MAX_CONNS", names), Some("max_conns"));
    }

    #[test]
    fn far_names_are_not() {
        assert_eq!(suggest("zebra", ["app", "assets"]), None);
        assert_eq!(suggest("x", ["a"]), None);
        assert_eq!(suggest("", ["a"]), None);
    }

    #[test]
    fn the_hint_names_what_there_is() {
        assert_eq!(
            hint("ap", "pools are", ["app", "assets"]),
            "did you mean `app`? pools are: app, assets"
        );
        assert_eq!(
            hint("zebra", "pools are", ["app", "assets"]),
            "pools are: app, assets"
        );
        assert_eq!(hint("zebra", "pools are", []), "pools are: (none)");
    }

    #[test]
    fn long_lists_give_way_to_a_good_guess() {
        let names: Vec<String> = (0..100).map(|n| format!("pool{n:03}")).collect();
        let names = || names.iter().map(String::as_str);
        assert_eq!(
            hint("pol007", "pools are", names()),
            "did you mean `pool007`?"
        );
        assert!(hint("zebra", "pools are", names()).ends_with("pool059, ..."));
    }
}
