//! The pool of threads.

use denoise::error::Code;
use denoise::pool::Pool;
use std::sync::atomic::{AtomicUsize, Ordering};

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
