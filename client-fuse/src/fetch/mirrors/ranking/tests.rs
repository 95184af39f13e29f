//! Who is asked first, by what happened before.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::ZERO;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn order(ranking: &Ranking) -> Vec<usize> {
    ranking.order().into_iter().map(|mirror| mirror.0).collect()
}

/// A few answers that were waited for so long, with bodies of 64 KiB.
fn answers(ranking: &mut Ranking, mirror: usize, waited: u64, body: u64) {
    for _ in 0..10 {
        ranking.measured(MirrorId(mirror), |score| score.answered(ms(waited)));
        ranking.measured(MirrorId(mirror), |score| score.received(64 << 10, ms(body)));
    }
}

#[test]
fn the_order_given_counts_until_something_fails() {
    let mut ranking = Ranking::of(3);
    assert_eq!(order(&ranking), [0, 1, 2]);
    assert_eq!(
        ranking.failed(MirrorId(0), Blame::Unable, NOW),
        Some(Standing::Failing)
    );
    assert_eq!(order(&ranking), [1, 2, 0]);
    ranking.answered(MirrorId(0), NOW);
    assert_eq!(order(&ranking), [0, 1, 2]);
}

#[test]
fn a_liar_goes_last_for_good_and_is_told_once() {
    let mut ranking = Ranking::of(3);
    let told = ranking.failed(MirrorId(0), Blame::Lying, NOW);
    assert_eq!(told, Some(Standing::Quarantined));
    assert_eq!(ranking.failed(MirrorId(0), Blame::Lying, NOW), None);
    assert_eq!(ranking.failed(MirrorId(0), Blame::Unable, NOW), None);
    ranking.answered(MirrorId(0), NOW);
    ranking.failed(MirrorId(1), Blame::Unable, NOW);
    assert_eq!(order(&ranking), [2, 1, 0]);
}

#[test]
fn the_faster_goes_first_by_latency_and_by_throughput() {
    let mut ranking = Ranking::of(2);
    answers(&mut ranking, 0, 80, 10);
    assert_eq!(order(&ranking), [0, 1], "of the other nothing is known");
    answers(&mut ranking, 1, 20, 10);
    assert_eq!(order(&ranking), [1, 0]);
    answers(&mut ranking, 1, 20, 500);
    assert_eq!(order(&ranking), [0, 1], "its bodies are slow");
}

#[test]
fn a_little_is_not_worth_a_change_and_the_better_comes_back() {
    let mut ranking = Ranking::of(2);
    answers(&mut ranking, 0, 50, 10);
    answers(&mut ranking, 1, 45, 10);
    assert_eq!(order(&ranking), [0, 1]);
    ranking.failed(MirrorId(0), Blame::Unable, NOW);
    assert_eq!(order(&ranking), [1, 0]);
    ranking.answered(MirrorId(0), NOW);
    assert_eq!(order(&ranking), [0, 1], "it is as good as the other");
}

#[test]
fn one_answer_is_too_little_to_take_over() {
    let mut ranking = Ranking::of(2);
    answers(&mut ranking, 0, 80, 10);
    ranking.measured(MirrorId(1), |score| score.answered(ms(1)));
    assert_eq!(order(&ranking), [0, 1]);
    let first = ranking.measured(MirrorId(1), |score| score.answered(ms(1)));
    assert_eq!(first, Some(MirrorId(1)));
}

#[test]
fn a_look_that_takes_long_keeps_nobody_from_another() {
    let mut ranking = Ranking::of(4);
    for mirror in 1..4 {
        assert_eq!(ranking.due(NOW), Some(MirrorId(mirror)));
        ranking.looked_at(MirrorId(mirror), NOW);
    }
    assert_eq!(ranking.due(ms(60_000)), None, "at each of them one looks");
    ranking.was_looked_at(MirrorId(3));
    assert_eq!(ranking.due(ms(60_000)), Some(MirrorId(3)));
}

#[test]
fn others_are_looked_at_less_and_less_and_liars_never() {
    let mut ranking = Ranking::of(3);
    ranking.failed(MirrorId(2), Blame::Lying, NOW);
    let mut looks = Vec::new();
    for second in 0..3000 {
        let now = Duration::from_secs(second);
        while let Some(mirror) = ranking.due(now) {
            ranking.looked_at(mirror, now);
            ranking.was_looked_at(mirror);
            assert_eq!(mirror, MirrorId(1));
            looks.push(second);
        }
    }
    assert_eq!(looks[..5], [0, 1, 3, 7, 15]);
    assert!(looks.len() < 20, "{looks:?}");
    // One that fails is looked at soon, so that it is noticed when it is back.
    ranking.failed(MirrorId(1), Blame::Unable, Duration::from_secs(4000));
    assert_eq!(ranking.due(Duration::from_millis(4_000_900)), None);
    assert_eq!(ranking.due(Duration::from_secs(4001)), Some(MirrorId(1)));
}

proptest! {
    /// Whatever happened, every mirror is asked once before one is asked again, and none goes before
    /// one that stands better.
    #[test]
    fn a_round_asks_every_mirror_once(
        n in 1..6_usize,
        events in vec((0..6_usize, 0..5_u8, 0..500_u64), 0..60),
    ) {
        let mut ranking = Ranking::of(n);
        for (mirror, event, time) in events {
            let mirror = MirrorId(mirror);
            match event {
                0 => ranking.answered(mirror, NOW),
                1 => drop(ranking.failed(mirror, Blame::Unable, NOW)),
                2 => drop(ranking.measured(mirror, |score| score.answered(ms(time)))),
                3 => drop(ranking.measured(mirror, |score| score.received(64 << 10, ms(time)))),
                _ => drop(ranking.failed(mirror, Blame::Lying, NOW)),
            }
        }
        let mut tried = Vec::new();
        while let Some(mirror) = ranking.next(&tried) {
            tried.push(mirror);
        }
        prop_assert_eq!(tried.len(), n);
        prop_assert_eq!(&tried, &ranking.order());
        prop_assert_eq!(tried[0], ranking.first());
        let standings: Vec<_> = tried.iter().map(|mirror| ranking.standing(*mirror)).collect();
        prop_assert!(standings.is_sorted());
    }
}
