//! Attention against its reference, over odd shapes.

mod common;

use common::{Level, Rng, Tensor, bound, conform, levels, normalized_error, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::view::View;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bias {
    None,
    Full,
    /// (1, H, Sq, Sk), as T5's.
    Heads,
    /// (B, 1, 1, Sk), as masks of padding.
    Keys,
    /// (1, 1, Sq, 1).
    Queries,
    /// Steps of 2 along the keys.
    Strided,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    dtype: DType,
    b: usize,
    h: usize,
    sq: usize,
    sk: usize,
    d: usize,
    bias: Bias,
    causal: bool,
    /// Whether the operands lie as (B, S, H, D) with a gap after each row.
    tokens_first: bool,
    /// The gap in elements.
    gap: usize,
    scale: f32,
}

fn case(dtype: DType, sq: usize, sk: usize, d: usize) -> Case {
    let scale = 1.0 / (d as f32).sqrt();
    Case { dtype, b: 1, h: 2, sq, sk, d, bias: Bias::None, causal: false, tokens_first: false, gap: 3, scale }
}

fn tensor(c: &Case, s: usize) -> Tensor {
    let shape = [c.b, c.h, s, c.d];
    if c.tokens_first {
        let row = c.d + c.gap;
        Tensor::with_strides(c.dtype, &shape, &[s * c.h * row, row, c.h * row, 1])
    } else {
        Tensor::empty(c.dtype, &shape)
    }
}

fn bias(c: &Case) -> Option<Tensor> {
    let (h, sq, sk) = (c.h, c.sq, c.sk);
    let strides = match c.bias {
        Bias::None => return None,
        Bias::Full => [h * sq * sk, sq * sk, sk, 1],
        Bias::Heads => [0, sq * sk, sk, 1],
        Bias::Keys => [sk, 0, 0, 1],
        Bias::Queries => [0, 0, 1, 0],
        Bias::Strided => [h * sq * sk * 2, sq * sk * 2, sk * 2, 2],
    };
    Some(Tensor::with_strides(DType::F32, &[c.b, h, sq, sk], &strides))
}

fn operands(c: &Case, rng: &mut Rng) -> Vec<Option<Tensor>> {
    vec![
        Some(tensor(c, c.sq).random(rng, 2.0)),
        Some(tensor(c, c.sk).random(rng, 2.0)),
        Some(tensor(c, c.sk).random(rng, 1.0)),
        bias(c).map(|t| t.random(rng, 3.0)),
    ]
}

fn params(c: &Case) -> [u32; 3] {
    params_of(c, 0)
}

fn params_of(c: &Case, way: u32) -> [u32; 3] {
    [c.scale.to_bits(), c.causal as u32, way]
}

/// Levels and ways of each; one that a call lacks is its first.
fn ways() -> Vec<(Level, u32)> {
    let ways = |level| if level == Level::CudaEmulated { 0..WAYS } else { 0..1 };
    levels().into_iter().flat_map(|level| ways(level).map(move |way| (level, way))).collect()
}

fn check(c: Case) {
    let mut rng = Rng(c.sq as u64 * 1009 + c.sk as u64 * 31 + c.d as u64);
    check_inputs(&format!("{c:?}"), &c, &operands(&c, &mut rng));
}

fn check_inputs(what: &str, c: &Case, inputs: &[Option<Tensor>]) {
    conform(what, Op::Attention, inputs, &tensor(c, c.sq), &params(c));
    // 32-bit floats have one way.
    let others = ways().into_iter().filter(|&(_, way)| way > 0 && c.dtype != DType::F32);
    let pool = Pool::new(1).unwrap();
    let mut want = None;
    for (level, way) in others {
        let want = want.get_or_insert_with(|| {
            let mut want = tensor(c, c.sq);
            run(Level::Reference, &pool, Op::Attention, &mut inputs.to_vec(), &mut want, &params(c));
            want.values()
        });
        let mut got = tensor(c, c.sq);
        run(level, &pool, Op::Attention, &mut inputs.to_vec(), &mut got, &params_of(c, way));
        let error = normalized_error(&got.values(), want);
        assert!(error <= bound(c.dtype), "{what}: way {way} on {}: error {error:.3e}", level.name());
    }
}

/// The CUDA library's ways by tensor cores; the plain one is the first where those do not take a call.
const WAYS: u32 = 2;

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn sizes() {
    let sizes = [1, 2, 7, 31, 64, 65, 127, 130, 257];
    for (i, &sq) in sizes.iter().enumerate() {
        for (j, &sk) in sizes.iter().enumerate() {
            for dtype in DTYPES {
                check(Case { tokens_first: (i + j) % 2 == 1, ..case(dtype, sq, sk, [8, 13, 16, 24][(i + j) % 4]) });
            }
        }
    }
}

#[test]
fn depths() {
    for d in [1, 2, 3, 8, 13, 32, 40, 64, 80, 128, 512] {
        for dtype in DTYPES {
            check(Case { h: 1, tokens_first: d % 3 == 0, ..case(dtype, 67, 71, d) });
        }
    }
}

#[test]
fn biases() {
    for bias in [Bias::Full, Bias::Heads, Bias::Keys, Bias::Queries, Bias::Strided] {
        for dtype in DTYPES {
            for (sq, sk) in [(5, 3), (65, 67), (50, 130)] {
                check(Case { b: 2, bias, ..case(dtype, sq, sk, 16) });
                check(Case { b: 2, bias, causal: true, tokens_first: true, ..case(dtype, sq, sk.max(sq), 13) });
            }
        }
    }
}

#[test]
fn causal() {
    for dtype in DTYPES {
        for (sq, sk) in [(1, 1), (7, 7), (65, 65), (130, 130), (7, 64), (64, 7), (130, 257), (257, 130), (2, 127)] {
            check(Case { causal: true, ..case(dtype, sq, sk, 24) });
        }
    }
}

#[test]
fn threads_share_large_calls() {
    for dtype in DTYPES {
        check(Case { b: 2, h: 3, tokens_first: true, ..case(dtype, 330, 257, 64) });
        check(Case { h: 1, ..case(dtype, 700, 65, 128) });
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for dtype in DTYPES {
        for causal in [false, true] {
            let c = Case { h: 3, causal, bias: Bias::Heads, ..case(dtype, 300, 300, 40) };
            let inputs = operands(&c, &mut Rng(5));
            for level in levels() {
                let results: Vec<Vec<f64>> = [1, 2, 5]
                    .iter()
                    .map(|&threads| {
                        let mut out = tensor(&c, c.sq);
                        let pool = Pool::new(threads).unwrap();
                        run(level, &pool, Op::Attention, &mut inputs.clone(), &mut out, &params(&c));
                        out.values()
                    })
                    .collect();
                assert!(results.iter().all(|r| *r == results[0]), "{dtype:?} on {}", level.name());
            }
        }
    }
}

/// What tensor cores take: rows that begin at multiples of 16 bytes. Tiles of queries and of keys, whole, cut off, one or
/// several, heads as wide as theirs or less, and each with what hides keys.
#[test]
fn rows_of_sixteen_bytes() {
    for (i, d) in [64, 128, 8, 40, 72, 96, 120].into_iter().enumerate() {
        for (j, (sq, sk)) in [(1, 1), (128, 128), (130, 300), (77, 129), (257, 64), (64, 193)].into_iter().enumerate() {
            let dtype = [DType::BF16, DType::F16][(i + j) % 2];
            let c = Case { b: 2, tokens_first: j % 2 == 0, gap: 8, ..case(dtype, sq, sk, d) };
            check(Case { h: 1, ..c });
            check(match (i + j) % 4 {
                0 => Case { causal: true, ..c },
                1 => Case { bias: Bias::Keys, ..c },
                2 => Case { causal: true, bias: Bias::Heads, ..c },
                _ => Case { bias: Bias::Full, ..c },
            });
        }
    }
}

/// Scores so far apart that a softmax without its maximum would overflow.
#[test]
fn extreme_scores() {
    for dtype in DTYPES {
        check(Case { scale: 40.0, ..case(dtype, 33, 130, 8) });
        let c = Case { bias: Bias::Full, ..case(dtype, 20, 130, 8) };
        let mut inputs = operands(&c, &mut Rng(3));
        // One key far above the rest, early, late, or in the middle; others at the least float or hidden.
        let full = Tensor::empty(DType::F32, &[1, 2, 20, 130]).fill(|i| match (i % 130, i / 130 % 20) {
            (key, row) if key == row * 6 => 1e4,
            (key, _) if key % 3 == 0 => f32::MIN,
            (key, _) if key % 3 == 1 => f32::NEG_INFINITY,
            _ => -1e4,
        });
        inputs[3] = Some(full);
        check_inputs("far apart", &c, &inputs);
    }
}

#[test]
fn masks() {
    for dtype in DTYPES {
        let c = Case { bias: Bias::Full, ..case(dtype, 70, 200, 16) };
        let mut inputs = operands(&c, &mut Rng(4));
        // Some rows see nothing in their first blocks, some nothing at all; those of the least float see all alike.
        inputs[3] = Some(Tensor::empty(DType::F32, &[1, 2, 70, 200]).fill(|i| match (i % 200, i / 200 % 70) {
            (_, row) if row % 7 == 0 => f32::NEG_INFINITY,
            (_, row) if row % 7 == 1 => f32::MIN,
            (key, row) if row % 7 == 2 && key < 150 => f32::NEG_INFINITY,
            (key, row) if row % 7 == 3 && key > 3 => f32::NEG_INFINITY,
            (key, row) => ((key * row) % 5) as f32,
        }));
        check_inputs("masks", &c, &inputs);
        for (level, way) in ways() {
            let mut out = tensor(&c, c.sq);
            run(level, &Pool::new(1).unwrap(), Op::Attention, &mut inputs.clone(), &mut out, &params_of(&c, way));
            assert!(out.values()[..16].iter().all(|&x| x == 0.0), "a row that sees no key is zero");
        }
    }
}

#[test]
fn no_keys_give_zeros() {
    for dtype in DTYPES {
        let c = case(dtype, 5, 0, 8);
        let inputs = operands(&c, &mut Rng(1));
        for (level, way) in ways() {
            let mut out = tensor(&c, c.sq);
            run(level, &Pool::new(1).unwrap(), Op::Attention, &mut inputs.clone(), &mut out, &params_of(&c, way));
            assert!(out.values().iter().all(|&x| x == 0.0));
        }
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for dtype in DTYPES {
        let c = Case { h: 1, ..case(dtype, 70, 130, 8) };
        let nan_rows = |operand: usize, element: usize, value: f32| -> Vec<Vec<bool>> {
            let mut inputs = operands(&c, &mut Rng(6));
            let view = inputs[operand].as_mut().unwrap().view();
            unsafe { view.set(element, value) };
            let mut all = ways();
            all.push((Level::Reference, 0));
            all.iter()
                .map(|&(level, way)| {
                    let mut out = tensor(&c, c.sq);
                    let pool = Pool::new(1).unwrap();
                    run(level, &pool, Op::Attention, &mut inputs.clone(), &mut out, &params_of(&c, way));
                    out.values().iter().map(|x| x.is_nan()).collect()
                })
                .collect()
        };
        for (operand, element, value) in [
            (0, 67 * 8 + 3, f32::NAN),
            (0, 3, f32::INFINITY),
            (1, 100 * 8, f32::NAN),
            (1, 129 * 8, f32::NAN),
            (2, 129 * 8 + 1, f32::NAN),
            (2, 5, f32::NAN),
            (2, 5, f32::INFINITY),
        ] {
            let found = nan_rows(operand, element, value);
            let want = found.last().unwrap();
            assert!(found.iter().all(|f| f == want), "{dtype:?}: {value} in operand {operand} at {element}");
            assert!(value.is_infinite() || want.contains(&true));
        }
    }
}

/// Memory at its peak must not hold a matrix of scores: 16384 queries by 16384 keys would take a gigabyte.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_scores() {
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    let c = Case { h: 1, ..case(DType::F32, 16384, 16384, 1) };
    let mut inputs = operands(&c, &mut Rng(7));
    let mut out = tensor(&c, c.sq);
    let before = peak();
    run(Level::best(), &Pool::new(2).unwrap(), Op::Attention, &mut inputs, &mut out, &params(&c));
    assert!(peak() - before < 256 << 20);
}

#[test]
fn wrong_operands_are_refused() {
    let view = |dtype, shape: &[usize]| Some(View::contiguous(std::ptr::null_mut(), dtype, shape));
    let good = [
        view(DType::F32, &[1, 2, 5, 8]),
        view(DType::F32, &[1, 2, 7, 8]),
        view(DType::F32, &[1, 2, 7, 8]),
        view(DType::F32, &[1, 2, 5, 7]),
        view(DType::F32, &[1, 2, 5, 8]),
    ];
    let check = |operands: &[Option<View>], params: &[u32]| {
        (ops::kernel(Op::Attention).check)(&Args { operands, params }).map_err(|e| e.message)
    };
    check(&good, &[0, 0, 0]).unwrap();
    assert!(check(&good, &[0, 2, 0]).unwrap_err().contains("causal"));
    for (operand, wrong, says) in [
        (0, view(DType::F32, &[2, 5, 8]), "q must be (B, H, S, D)"),
        (0, view(DType::I32, &[1, 2, 5, 8]), "q must be f32"),
        (1, view(DType::F32, &[1, 1, 7, 8]), "k must be"),
        (1, view(DType::BF16, &[1, 2, 7, 8]), "k must be F32"),
        (2, view(DType::F32, &[1, 2, 6, 8]), "v must be"),
        (2, view(DType::F32, &[1, 2, 7, 9]), "v must be"),
        (3, view(DType::F32, &[1, 2, 5, 8]), "bias must be"),
        (3, view(DType::BF16, &[1, 2, 5, 7]), "bias must be f32"),
        (4, view(DType::F32, &[1, 2, 5, 7]), "out must be"),
    ] {
        let mut operands = good;
        operands[operand] = wrong;
        let error = check(&operands, &[0, 0, 0]).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

/// As many tokens as a video has, whose scores would be more than a gigabyte: a few queries are compared, as each is
/// computed by itself. Nothing larger than the operands may be allocated.
#[test]
fn many_tokens() {
    let (tokens, seen) = (17_776, [0, 1, 226, 8_191, 17_774, 17_775]);
    for dtype in [DType::F32, DType::BF16] {
        let c = Case { h: 1, ..case(dtype, tokens, tokens, 16) };
        let mut inputs = operands(&c, &mut Rng(11));
        let queries = inputs[0].as_ref().unwrap().values();
        let row = |i: usize| queries[seen[i / c.d] * c.d + i % c.d] as f32;
        let few = Tensor::empty(dtype, &[1, 1, seen.len(), c.d]).fill(row);
        let mut want = Tensor::empty(dtype, &[1, 1, seen.len(), c.d]);
        let pool = Pool::new(2).unwrap();
        let mut few_inputs = [Some(few), inputs[1].clone(), inputs[2].clone(), None];
        run(Level::Reference, &pool, Op::Attention, &mut few_inputs, &mut want, &params(&c));
        // Emulated, so many take minutes, and show nothing that fewer do not.
        for level in levels().into_iter().filter(|&level| level != Level::CudaEmulated) {
            let mut out = Tensor::empty(dtype, &[1, 1, tokens, c.d]);
            let before = peak_bytes();
            run(level, &pool, Op::Attention, &mut inputs, &mut out, &params(&c));
            let grown = peak_bytes().saturating_sub(before);
            assert!(grown < 64 << 20, "{} took {grown} bytes more", level.name());
            let got = out.values();
            let got: Vec<f64> = seen.iter().flat_map(|&s| got[s * c.d..(s + 1) * c.d].to_vec()).collect();
            let error = normalized_error(&got, &want.values());
            assert!(error <= bound(dtype), "{dtype:?} on {}: error {error:.3e}", level.name());
        }
    }
}

/// The most memory that this process has had, where the system says so.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB"))
        .map_or(0, |kilobytes| kilobytes.trim().parse::<usize>().unwrap() << 10)
}
