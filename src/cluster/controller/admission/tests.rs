// SPDX-License-Identifier: Apache-2.0
//! Slots under changes that arrive late, twice and out of order.

use super::*;

const LIMIT: usize = 2;

fn queue() -> Key {
    Key { namespace: "n".into(), name: "q".into() }
}

fn id(n: u32) -> ConversionId {
    ConversionId::for_file("a.vmdk", n)
}

fn conversion(n: u32, need: SlotNeed) -> Message {
    let created = Timestamp::from_second(i64::from(n)).unwrap();
    Message::Conversion { queue: queue(), id: id(n), created, need }
}

fn ready(n: u32) -> Message {
    conversion(n, SlotNeed::Ready(Attempt(1)))
}

fn job(n: u32, finished: bool) -> Message {
    Message::Job { queue: queue(), id: id(n), attempt: Attempt(1), finished }
}

fn spec(limit: usize, run_state: RunState) -> Message {
    Message::Queue { queue: queue(), limit, run_state }
}

/// A warm state that knows its queue.
fn slots() -> Slots {
    let mut slots = Slots::default();
    assert_eq!(slots.receive(spec(LIMIT, RunState::Running)), []);
    assert_eq!(slots.receive(Message::Warm(None)), []);
    slots
}

fn granted(slots: &mut Slots, message: Message) -> Vec<ConversionId> {
    slots.receive(message).into_iter().map(|(_, id)| id).collect()
}

#[test]
fn nothing_is_granted_before_the_caches_are_warm_then_the_oldest_first() {
    let mut slots = Slots::default();
    for message in [ready(3), ready(1), spec(LIMIT, RunState::Running), ready(2)] {
        assert_eq!(granted(&mut slots, message), []);
    }
    assert_eq!(granted(&mut slots, Message::Warm(None)), [id(1), id(2)]);
}

#[test]
fn a_reservation_stands_until_the_caches_show_the_attempt_and_is_counted_once() {
    let mut slots = slots();
    assert_eq!(granted(&mut slots, ready(1)), [id(1)]);
    assert_eq!(granted(&mut slots, ready(1)), [], "an old view of the cache");
    assert_eq!(granted(&mut slots, conversion(1, SlotNeed::Open(Attempt(1)))), []);
    assert_eq!(granted(&mut slots, job(1, false)), []);
    assert_eq!(granted(&mut slots, ready(2)), [id(2)]);
    assert_eq!(granted(&mut slots, ready(3)), []);
    assert_eq!(slots.totals(), (2, 1));
}

#[test]
fn a_slot_is_free_when_both_the_attempt_has_ended_and_its_job_has_finished_or_gone() {
    for gone in [job(1, true), Message::JobGone { queue: queue(), id: id(1), attempt: Attempt(1) }] {
        let mut slots = slots();
        for message in [ready(1), conversion(1, SlotNeed::Open(Attempt(1))), job(1, false), ready(2)] {
            slots.receive(message);
        }
        assert_eq!(granted(&mut slots, ready(3)), []);
        assert_eq!(granted(&mut slots, conversion(1, SlotNeed::Idle)), [], "its Job still runs");
        assert_eq!(granted(&mut slots, gone), [id(3)]);
    }
}

#[test]
fn a_conversion_that_goes_gives_its_slot_or_its_place_back() {
    let mut slots = slots();
    for message in [ready(1), ready(2), ready(3), ready(4)] {
        slots.receive(message);
    }
    let gone = |n| Message::ConversionGone { namespace: "n".into(), id: id(n) };
    assert_eq!(granted(&mut slots, gone(3)), []);
    assert_eq!(granted(&mut slots, gone(1)), [id(4)]);
}

#[test]
fn pausing_grants_nothing_and_resuming_or_a_higher_limit_does() {
    let mut slots = slots();
    slots.receive(spec(1, RunState::Paused));
    for message in [ready(1), ready(2), ready(3)] {
        assert_eq!(granted(&mut slots, message), []);
    }
    assert_eq!(granted(&mut slots, spec(1, RunState::Draining)), [id(1)]);
    assert_eq!(granted(&mut slots, spec(2, RunState::Running)), [id(2)]);
    assert_eq!(granted(&mut slots, Message::QueueGone { queue: queue() }), []);
}

#[test]
fn the_next_attempt_of_a_conversion_waits_anew() {
    let mut slots = slots();
    slots.receive(ready(1));
    slots.receive(conversion(1, SlotNeed::Open(Attempt(1))));
    slots.receive(conversion(1, SlotNeed::Idle));
    assert_eq!(granted(&mut slots, conversion(1, SlotNeed::Ready(Attempt(2)))), [id(1)]);
}

#[tokio::test]
async fn who_holds_a_slot_is_told_so() {
    let (granted, mut grants) = mpsc::unbounded_channel();
    let admission = Admission::start(granted, |_, _| {});
    for message in [spec(1, RunState::Running), ready(1), ready(2), Message::Warm(None)] {
        admission.send(message);
    }
    assert!(admission.may_start(queue(), id(1), Attempt(1)).await);
    assert!(!admission.may_start(queue(), id(1), Attempt(2)).await);
    assert!(!admission.may_start(queue(), id(2), Attempt(1)).await);
    assert_eq!(grants.recv().await, Some((queue(), id(1))));
}

#[test]
fn a_namespace_that_is_not_listed_yet_keeps_nothing_from_another() {
    let mut slots = Slots::default();
    let other = Key { namespace: "m".into(), name: "q".into() };
    let of_other = Message::Conversion {
        queue: other.clone(),
        id: id(9),
        created: Timestamp::UNIX_EPOCH,
        need: SlotNeed::Ready(Attempt(1)),
    };
    let wanted = Message::Queue { queue: other, limit: LIMIT, run_state: RunState::Running };
    for message in [spec(LIMIT, RunState::Running), wanted, ready(1), of_other] {
        assert_eq!(granted(&mut slots, message), []);
    }
    assert_eq!(granted(&mut slots, Message::Warm(Some("n".into()))), [id(1)]);
    assert_eq!(granted(&mut slots, Message::Warm(Some("m".into()))), [id(9)]);
}

#[test]
fn a_slot_comes_back_when_a_reconcile_fails_and_is_asked_for_anew() {
    let mut slots = slots();
    for n in 1..=2 {
        assert_eq!(granted(&mut slots, ready(n)), [id(n)]);
    }
    assert_eq!(granted(&mut slots, ready(3)), []);
    let failed = |n| Message::Failed { namespace: "n".into(), id: id(n) };
    assert_eq!(granted(&mut slots, failed(1)), [id(3)], "another takes its place");
    let mut ask = |n| {
        let (answer, mut answered) = oneshot::channel();
        let asking = Message::MayStart { queue: queue(), id: id(n), attempt: Attempt(1), answer };
        let granted = slots.receive(asking).into_iter().map(|(_, id)| id).collect::<Vec<_>>();
        (answered.try_recv().unwrap(), granted, slots.totals())
    };
    assert_eq!(ask(1), (false, vec![], (2, 1)), "it waits again");
    assert_eq!(ask(3), (true, vec![], (2, 1)));
    assert_eq!(granted(&mut slots, failed(2)), [id(1)]);
    assert_eq!(granted(&mut slots, failed(9)), [], "nobody knows it");
}
