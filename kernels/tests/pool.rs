//! The pool of threads.

use denoise::error::Code;
use denoise::pool::Pool;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn every_index_is_run_once() {
    let pool = Pool::new(3).unwrap();
    for tasks in [0, 1, 2, 7, 1000] {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, &|i, _| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        })
        .unwrap();
        assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
    }
}

#[test]
fn a_panic_is_an_error_and_the_pool_lives_on() {
    let pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        let failed = pool.run(8, &|i, _| assert!(i != 5)).unwrap_err();
        assert_eq!(failed.code, Code::Internal);
        pool.run(8, &|_, _| {}).unwrap();
    }
}

#[test]
fn threads_work_before_during_and_after_a_watch() {
    let pool = Pool::new(3).unwrap();
    let count = AtomicUsize::new(0);
    let work = || {
        let task = |_: usize, _: usize| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        pool.run(64, &task).unwrap();
    };
    for round in 0..20 {
        // Long enough for threads to fall asleep every other time.
        let rest = || std::thread::sleep(Duration::from_micros(round % 2 * 1000));
        work();
        let watch = pool.watch();
        rest();
        work();
        drop(watch);
        rest();
        work();
        assert_eq!(count.load(Ordering::Relaxed), (round as usize + 1) * 3 * 64);
    }
}
