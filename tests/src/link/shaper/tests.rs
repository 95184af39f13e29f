//! Laws of the line, on a clock that is a number.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::{Loss, Rate, Shaper, Verdict};

const MS: Duration = Duration::from_millis(1);

/// Packets as (time since the one before, bytes).
fn packets() -> impl Strategy<Value = Vec<(Duration, u64)>> {
    let gap = (0..3_000_000_u64).prop_map(Duration::from_nanos);
    vec((gap, 40..65_536_u64), 1..200)
}

fn rates() -> impl Strategy<Value = Rate> {
    (1..2_000_u64).prop_map(Rate::from_mbit)
}

/// Offers all and returns (offered at, bytes, verdict).
fn run(shaper: &mut Shaper, packets: &[(Duration, u64)]) -> Vec<(Duration, u64, Verdict)> {
    let mut now = Duration::ZERO;
    packets
        .iter()
        .map(|&(gap, bytes)| {
            now += gap;
            (now, bytes, shaper.offer(now, bytes))
        })
        .collect()
}

proptest! {
    /// A packet comes out at max(arrival, line free) + bytes / rate + delay, and in order.
    #[test]
    fn departure_is_when_the_line_is_free_plus_its_time_plus_the_delay(
        (packets, rate) in (packets(), rates())
    ) {
        let mut shaper = Shaper::new(25 * MS, Some(rate), u64::MAX, None);
        let mut free = Duration::ZERO;
        for (now, bytes, verdict) in run(&mut shaper, &packets) {
            free = free.max(now) + rate.time_of(bytes);
            prop_assert_eq!(verdict, Verdict::Arrives(free + 25 * MS));
        }
    }

    /// However much is offered, what comes out by any time fits the rate.
    #[test]
    fn never_more_than_the_rate((packets, rate) in (packets(), rates())) {
        let mut shaper = Shaper::new(Duration::ZERO, Some(rate), 1 << 20, None);
        let mut out = 0;
        for (_, bytes, verdict) in run(&mut shaper, &packets) {
            if let Verdict::Arrives(at) = verdict {
                out += bytes;
                prop_assert!(out <= rate.bytes_in(at), "{out} bytes by {at:?}");
            }
        }
    }

    /// No packet waits longer than a full queue takes.
    #[test]
    fn the_queue_bounds_the_wait((packets, rate) in (packets(), rates())) {
        let queue = 128 << 10;
        let mut shaper = Shaper::new(MS, Some(rate), queue, None);
        for (now, bytes, verdict) in run(&mut shaper, &packets) {
            if let Verdict::Arrives(at) = verdict {
                let longest = rate.time_of(queue.max(bytes) + 1) + MS;
                prop_assert!(at - now <= longest, "waited {:?}", at - now);
            }
        }
    }

    /// A packet is dropped only behind others.
    #[test]
    fn an_idle_line_drops_nothing((packets, rate) in (packets(), rates())) {
        let mut shaper = Shaper::new(MS, Some(rate), 0, None);
        let mut free = Duration::ZERO;
        for (now, _, verdict) in run(&mut shaper, &packets) {
            match verdict {
                Verdict::Arrives(at) => free = at - MS,
                _ => prop_assert!(now < free),
            }
        }
    }

    /// The same seed loses the same packets.
    #[test]
    fn loss_is_replayed((packets, seed) in (packets(), any::<u64>())) {
        let loss = Some(Loss { share: 0.1, seed });
        let line = Shaper::new(MS, Some(Rate::from_mbit(10)), u64::MAX, loss);
        prop_assert_eq!(run(&mut line.clone(), &packets), run(&mut line.clone(), &packets));
    }
}

#[test]
fn about_as_many_are_lost_as_asked_for() {
    for share in [0.0, 0.001, 0.02, 0.5, 1.0] {
        let mut line = Shaper::new(MS, None, 0, Some(Loss { share, seed: 7 }));
        let lost = (0..100_000)
            .filter(|_| line.offer(MS, 1500) == Verdict::Lost)
            .count();
        let lost = u32::try_from(lost).map(f64::from).unwrap();
        let expected = share * 100_000.0;
        assert!(
            (lost - expected).abs() <= 4.0 * expected.sqrt(),
            "{lost} of {expected}"
        );
    }
}

#[test]
fn a_full_queue_drops_and_takes_again_once_it_has_drained() {
    // 8 Mbit/s is a byte in a microsecond.
    let mut line = Shaper::new(MS, Some(Rate::from_mbit(8)), 3000, None);
    let arrives = |micros| Verdict::Arrives(Duration::from_micros(micros));
    assert_eq!(line.offer(Duration::ZERO, 1500), arrives(2500));
    assert_eq!(line.offer(Duration::ZERO, 1500), arrives(4000));
    assert_eq!(line.offer(Duration::ZERO, 1500), Verdict::Dropped);
    assert_eq!(line.offer(Duration::from_micros(1500), 1500), arrives(5500));
}

#[test]
fn a_line_without_a_rate_only_delays() {
    let mut line = Shaper::new(5 * MS, None, 0, None);
    assert_eq!(line.offer(MS, 65_536), Verdict::Arrives(6 * MS));
    assert_eq!(line.offer(MS, 65_536), Verdict::Arrives(6 * MS));
}
