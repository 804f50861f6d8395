// SPDX-License-Identifier: Apache-2.0
//! Files that grow, pause, vanish and come back, without a clock or a disk.

use super::super::scan::Kind;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(30);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn file(name: &str, size: u64) -> Entry {
    Entry { name: name.into(), kind: Kind::Regular, size, mtime_ns: 1, ctime_ns: 1, inode: 7, device: 1 }
}

/// Looks at `entry` whenever it is due, from `from` to `to`.
fn run(settling: &mut Settling, entry: &Entry, from: u64, to: u64) -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    for now in from..=to {
        if settling.take_due(ms(now)).contains(&entry.name) {
            events.extend(settling.observe(entry, ms(now)).into_iter().map(|event| (now, event)));
        }
    }
    events
}

#[test]
fn a_file_is_stable_after_the_first_look_and_three_equal_ones() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let vm = file("vm.raw", 5);
    assert_eq!(settling.observe(&vm, ms(400)), []);
    assert_eq!(run(&mut settling, &vm, 400, 10_000), [(3400, Event::Stable { size: 5 })]);
    assert!(settling.is_stable("vm.raw"));
    assert_eq!(settling.next_look(), None);
}

#[test]
fn looks_in_quick_succession_count_once() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let vm = file("vm.raw", 5);
    for now in (0..3000).step_by(50) {
        assert_eq!(settling.observe(&vm, ms(now)), []);
    }
    assert_eq!(settling.observe(&vm, ms(3000)), [Event::Stable { size: 5 }]);
}

#[test]
fn size_and_time_and_the_inode_each_begin_it_anew() {
    let vm = file("vm.raw", 5);
    for changed in
        [Entry { size: 6, ..vm.clone() }, Entry { mtime_ns: 2, ..vm.clone() }, Entry { inode: 8, ..vm.clone() }]
    {
        let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
        settling.observe(&vm, ms(0));
        run(&mut settling, &vm, 1, 2500);
        assert_eq!(settling.observe(&changed, ms(2500)), [Event::Growing { size: changed.size }]);
        assert_eq!(run(&mut settling, &changed, 2501, 9000), [(5500, Event::Stable { size: changed.size })]);
    }
}

#[test]
fn a_change_of_mode_or_owner_costs_nothing() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let vm = file("vm.raw", 5);
    settling.observe(&vm, ms(0));
    run(&mut settling, &vm, 1, 2500);
    let changed = Entry { ctime_ns: 2, ..vm };
    assert_eq!(run(&mut settling, &changed, 2500, 9000), [(3000, Event::Stable { size: 5 })]);
}

#[test]
fn an_event_after_the_last_write_saves_the_wait_for_the_next_look() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    settling.observe(&file("vm.raw", 1), ms(0));
    assert!(settling.hint("vm.raw", ms(150)));
    assert!(settling.hint("vm.raw", ms(151)));
    assert_eq!(settling.next_look(), Some(ms(150)));
    let last = file("vm.raw", 2);
    assert_eq!(
        run(&mut settling, &last, 150, 5000),
        [(150, Event::Growing { size: 2 }), (3150, Event::Stable { size: 2 })]
    );
}

#[test]
fn a_storm_of_events_causes_ten_looks_a_second() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    settling.observe(&file("vm.raw", 0), ms(0));
    let mut looks = 0;
    for now in 0..1000 {
        settling.hint("vm.raw", ms(now));
        if !settling.take_due(ms(now)).is_empty() {
            looks += 1;
            settling.observe(&file("vm.raw", now), ms(now));
        }
    }
    assert_eq!(looks, 9);
    assert!(!settling.hint("unknown", ms(0)));
}

#[test]
fn a_growing_file_is_reported_every_ten_seconds_and_warned_of_once_then_hourly() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let (mut growing, mut overdue) = (Vec::new(), Vec::new());
    for second in 0..=7300 {
        for event in settling.observe(&file("vm.raw", second), ms(second * 1000)) {
            match event {
                Event::Growing { .. } => growing.push(second),
                Event::Overdue { since, .. } => overdue.push((second, since)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(growing[..4], [1, 11, 21, 31]);
    let s = Duration::from_secs;
    assert_eq!(overdue, [(30, s(30)), (3630, s(3630)), (7230, s(7230))]);
}

#[test]
fn a_stable_file_that_changes_begins_anew() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let (old, new) = (file("vm.raw", 1), file("vm.raw", 2));
    settling.observe(&old, ms(0));
    run(&mut settling, &old, 1, 4000);
    assert_eq!(settling.observe_all(std::slice::from_ref(&old), ms(60_000)), []);
    let unsettled = (Name::from("vm.raw"), Event::Unsettled { size: 2 });
    assert_eq!(settling.observe_all(std::slice::from_ref(&new), ms(90_000)), [unsettled]);
    assert_eq!(run(&mut settling, &new, 90_001, 95_000), [(93_000, Event::Stable { size: 2 })]);
}

#[test]
fn a_file_that_left_is_forgotten_and_begins_anew_when_it_returns() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let vm = file("vm.raw", 1);
    settling.observe(&vm, ms(0));
    assert_eq!(settling.observe_all(&[], ms(100)), [(Name::from("vm.raw"), Event::Gone)]);
    assert_eq!((settling.next_look(), settling.unsettled()), (None, 0));
    settling.observe(&vm, ms(2000));
    assert_eq!(run(&mut settling, &vm, 2001, 6000), [(5000, Event::Stable { size: 1 })]);
}

#[test]
fn ten_thousand_files_settle_side_by_side_and_then_cost_no_look() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    let files: Vec<_> = (10_000..20_000).map(|n| file(&format!("{n}.raw"), n)).collect();
    assert_eq!(settling.observe_all(&files, ms(0)), []);
    let mut looks = 0;
    for second in 1..=3 {
        let due = settling.take_due(ms(second * 1000));
        looks += due.len();
        for name in due {
            let n: usize = name.strip_suffix(".raw").unwrap().parse().unwrap();
            settling.observe(&files[n - 10_000], ms(second * 1000));
        }
    }
    assert_eq!((looks, settling.unsettled(), settling.next_look()), (30_000, 0, None));
}

#[test]
fn a_file_whose_look_failed_is_due_again() {
    let mut settling = Settling::new(LOOK_INTERVAL, TIMEOUT);
    settling.observe(&file("vm.raw", 1), ms(0));
    assert_eq!(settling.take_due(ms(1000)), [Name::from("vm.raw")]);
    assert_eq!(settling.next_look(), Some(ms(2000)));
}
