// SPDX-License-Identifier: Apache-2.0
//! Databases as a ledger finds them: its own, the original's, damaged, of other versions.

use super::*;

#[test]
fn a_database_of_the_original_is_adopted_and_its_failures_do_not_match() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    let original = Connection::open(&path).unwrap();
    original
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE processed_files (id INTEGER PRIMARY KEY AUTOINCREMENT, filename TEXT NOT NULL,
                 filepath TEXT NOT NULL, file_size INTEGER NOT NULL, md5_hash TEXT, processed_at TEXT NOT NULL,
                 output_path TEXT, status TEXT NOT NULL, UNIQUE(filename, file_size));
             INSERT INTO processed_files(filename, filepath, file_size, md5_hash, processed_at, status) VALUES
                 ('ok.vmdk', '/q/ok.vmdk', 10, 'aa', '2026-01-17T09:45:00.123456', 'success'),
                 ('bad.vmdk', '/q/bad.vmdk', 10, 'bb', '2026-01-17T09:45:00.123456', 'failed');",
        )
        .unwrap();
    drop(original);
    let ledger = open(&directory);
    assert!(ledger.find_success("ok.vmdk", 10, &Content::default()).unwrap().is_some());
    assert!(ledger.find_success("other.vmdk", 99, &md5("aa")).unwrap().is_some());
    assert_eq!(ledger.find_success("bad.vmdk", 10, &md5("bb")).unwrap(), None);
    assert!(!path.with_extension("db-wal").exists());
    let now: Timestamp = "2026-04-17T09:00:00Z".parse().unwrap();
    let clock = |days: i64| Clock {
        wall: now + (24 * days).hours(),
        boot_id: "a".to_owned(),
        uptime: Duration::from_secs(24 * 3600 * u64::try_from(days + 91).unwrap()),
    };
    // The first look happens at the time of the newest row.
    assert_eq!(ledger.prune(&clock(-91)).unwrap(), 0);
    assert_eq!(ledger.prune(&Clock { wall: now + (24 * 3650).hours(), ..clock(-90) }).unwrap(), 0);
    assert_eq!(ledger.prune(&clock(0)).unwrap(), 0);
    assert_eq!(ledger.prune(&clock(1)).unwrap(), 2);
}

#[test]
fn a_damaged_or_foreign_or_newer_database_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    std::fs::write(&path, vec![0x5a; 8192]).unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("move it aside"));

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE processed_files (filename TEXT)").unwrap();
    let error = Ledger::open(&path).unwrap_err();
    assert!(matches!(error, Error::Foreign { column: "filepath", .. }));

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(Ledger::open(&path).unwrap_err(), Error::TooNew { found: 99, .. }));
}

#[test]
fn a_link_in_the_databases_place_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deduplication.db");
    let victim = directory.path().join("victim");
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    assert!(matches!(Ledger::open(&path).unwrap_err(), Error::Open { .. }));
    assert!(!victim.exists());
}

#[test]
fn the_database_stays_open_to_those_who_query_it_and_who_delete_rows() {
    let directory = tempfile::tempdir().unwrap();
    let mut ledger = open(&directory);
    let path = directory.path().join("deduplication.db");
    let status = published(attempt(ConversionStatus::default(), Ok(()), 2_000), 2_003);
    let convert = |ledger: &mut Ledger, n: u32| {
        let claim = claim(&format!("{n}.raw"), n);
        ledger.claim(new(claim.clone())).unwrap();
        ledger.update(&claim.id, &with_status(&status)).unwrap();
    };
    convert(&mut ledger, 1);
    // The user's connection keeps no journal, and removes ours after it has written.
    let theirs = Connection::open(&path).unwrap();
    let seen = || theirs.query_row("SELECT count(*) FROM processed_files", [], |row| row.get::<_, u32>(0)).unwrap();
    assert_eq!(seen(), 1);
    theirs.execute("DELETE FROM processed_files", []).unwrap();
    assert!(!path.with_extension("db-journal").exists());
    assert_eq!(ledger.find_success("1.raw", 4096, &Content::default()).unwrap(), None);
    convert(&mut ledger, 2);
    assert_eq!(seen(), 1);
    assert!(path.with_extension("db-journal").exists());
}

#[test]
fn a_ledger_of_an_older_program_gets_the_outbox_and_stays_one_that_it_opens() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&directory));
    let path = directory.path().join("deduplication.db");
    Connection::open(&path).unwrap().execute_batch("DROP TABLE outbox").unwrap();
    open(&directory).post(&[announced("webhook", 1)]).unwrap();
    let version: i64 = Connection::open(&path).unwrap().query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 1);
}

#[test]
fn a_ledger_without_details_of_its_ends_gets_a_place_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = open(&directory);
    ledger.connection.execute_batch("ALTER TABLE ended DROP COLUMN details").unwrap();
    drop(ledger);
    let path = directory.path().join("deduplication.db");
    assert!(Page::read(&path, None, 9).is_err());
    drop(open(&directory));
    assert_eq!(Page::read(&path, None, 9).unwrap().conversions, []);
}
