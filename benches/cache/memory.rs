//! What a session costs: every byte on the heap, counted by the allocator, and what the process
//! has resident; what ageing them costs; and a thousand elements beside one another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shunt::flow::{
    DirectionRequest, ElementShape, HandOverMode, HashSeed, Moment, Outcome, SessionRequest,
    Sessions, SessionsLimits, TableReader, VnicShape, flow_table,
};
use shunt::packet::{MacAddr, Tuple, VnicId};

use super::keys::{key_of, tuples};
use super::report::{Report, median};
use super::support::now;
use super::{BURST, look_up};

const HUGE_PAGE: usize = 2 << 20;

static HEAP: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, counted; what is large gets huge pages, whoever asks for it.
struct Counting;

// SAFETY: every call goes to `System` with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is ours.
        let place = unsafe { System.alloc(layout) };
        advise(place, layout.size());
        place
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is ours.
        let place = unsafe { System.alloc_zeroed(layout) };
        advise(place, layout.size());
        place
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is ours.
        unsafe { System.dealloc(place, layout) }
    }
}

fn advise(place: *mut u8, size: usize) {
    let start = place.addr().next_multiple_of(HUGE_PAGE);
    let end = (place.addr() + size) / HUGE_PAGE * HUGE_PAGE;
    if !place.is_null() && start < end {
        // SAFETY: the range is within the allocation; the advice changes no content.
        unsafe {
            libc::madvise(
                place.with_addr(start).cast(),
                end - start,
                libc::MADV_HUGEPAGE,
            );
        }
    }
}

/// Binds this thread, and what it starts, to a CPU.
pub fn pin_to(cpu: usize) {
    // SAFETY: an all-zero set is an empty one; the calls read and write that set only.
    let bound = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    assert_eq!(bound, 0, "CPU {cpu} is not there to be measured on");
}

fn request(session: u32) -> SessionRequest {
    let (inside, outside) = tuples(session);
    let direction = |from: Tuple, to: Tuple, ingress: u16| DirectionRequest {
        ingress: VnicId(ingress),
        ingress_vlan: None,
        ingress_mac: None,
        tuple: from,
        translation: to,
        egress: VnicId(1 - ingress),
        egress_vlan: None,
        dst_mac: Some(MacAddr([2, 0, 0, 0, 1, ingress as u8])),
        src_mac: Some(MacAddr([2, 0, 0, 0, 2, ingress as u8])),
        l3_mtu: None,
        decrement_ttl: true,
        dscp: None,
    };
    SessionRequest {
        key: format!("ct-{session}"),
        protocol: inside.protocol,
        idle_timeout: Duration::from_secs(300 + u64::from(session % 60)),
        hard_timeout: None,
        mode: HandOverMode::Ordered,
        vouched: true,
        original: Some(direction(inside, outside, 0)),
        reply: Some(direction(outside.reversed(), inside.reversed(), 1)),
    }
}

fn vnic(number: u8) -> VnicShape {
    VnicShape {
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1500,
    }
}

/// Fills a quota of `sessions` through the keeper's book; then lets all of them age.
pub fn bytes_a_session(report: &mut Report, sessions: u32) {
    let (heap, resident) = (HEAP.load(Ordering::Relaxed), resident_bytes());
    let start = now();
    let (mut book, mut reader) = filled(0..sessions);
    let took = start.elapsed().as_secs_f64();
    let case = format!("sessions={sessions} ");
    let each = |bytes: usize| (bytes as f64 / f64::from(sessions)).round();
    let heap = HEAP.load(Ordering::Relaxed) - heap;
    report.line(&(case.clone() + "heap"), each(heap), "bytes/session", None);
    if sessions >= 1 << 16 {
        let resident = resident_bytes().saturating_sub(resident);
        let case = case.clone() + "resident";
        report.line(&case, each(resident), "bytes/session", None);
        let case = format!("sessions={sessions} offload");
        report.line(
            &case,
            (f64::from(sessions) / took).round(),
            "sessions/s",
            None,
        );
        ageing(report, &mut book, &mut reader);
    }
}

/// When sessions begin.
const BEGIN: Moment = Moment(1_000_000_000);

/// An element with as many sessions as its quota allows, numbered so.
pub fn filled(sessions: Range<u32>) -> (Sessions, TableReader) {
    let (writer, mut readers) = flow_table(2 * sessions.len() as u32, 1, HashSeed::random());
    let shape = ElementShape::new([vnic(0), vnic(1)]);
    let mut book = Sessions::new(shape, writer, SessionsLimits { closed: 1 });
    for session in sessions {
        let outcome = book.offload(request(session), BEGIN);
        assert!(matches!(outcome, Outcome::Offloaded(_)), "{outcome:?}");
    }
    (book, readers.remove(0))
}

/// How much of a core ageing takes: timers of five to six minutes run out, each session is found to
/// have moved meanwhile, and its timer is set anew.
fn ageing(report: &mut Report, book: &mut Sessions, reader: &mut TableReader) {
    const MOVED: Duration = Duration::from_secs(200);
    const SPAN: Duration = Duration::from_secs(370);
    const STEP: Duration = Duration::from_millis(100);
    let sessions = book.len();
    let ms = (BEGIN + MOVED).millis() as u32;
    for number in 0..2 * sessions as u32 {
        let pin = reader.pin();
        let flow = pin.lookup(&key_of(number)).expect("a session's flow");
        flow.count(1, 64, ms);
    }
    let mut at = BEGIN;
    let start = now();
    while at < BEGIN + SPAN {
        at = at + STEP;
        book.advance(at);
    }
    let took = start.elapsed();
    assert_eq!(book.len(), sessions, "aged too early");
    let share = 100.0 * took.as_secs_f64() / SPAN.as_secs_f64();
    let case = format!("sessions={sessions} ageing");
    report.line(&case, share, "percent of a core", None);
}

/// A thousand elements of 4,000 sessions: what a session takes, and look-ups that go from one
/// element to the next with each burst, as a worker does.
pub fn many_elements(report: &mut Report) {
    const ELEMENTS: u32 = 1000;
    const EACH: u32 = 4000;
    const SAMPLES: u32 = 7;
    let resident = resident_bytes();
    let mut elements: Vec<_> = (0..ELEMENTS)
        .map(|element| filled(element * EACH..(element + 1) * EACH))
        .collect();
    let taken = resident_bytes().saturating_sub(resident);
    let each = taken as f64 / f64::from(ELEMENTS * EACH);
    let case = "elements=1000 sessions=4000";
    report.line(
        &format!("{case} resident"),
        each.round(),
        "bytes/session",
        None,
    );
    let mut numbers = [0; BURST];
    let rates = (0..SAMPLES)
        .map(|sample| {
            let (mut hits, start) = (0, now());
            for turn in 0..16 {
                for (element, (_, reader)) in (0..).zip(&mut elements) {
                    for (place, number) in (0..).zip(&mut numbers) {
                        let stride: u32 = (sample * 16 + turn) * BURST as u32 + place;
                        *number =
                            2 * EACH * element + stride.wrapping_mul(0x9e37_79b1) % (2 * EACH);
                    }
                    hits += look_up(reader, &numbers);
                }
            }
            assert_eq!(
                hits,
                16 * u64::from(ELEMENTS) * BURST as u64,
                "a wrong answer"
            );
            hits as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    report.line(
        &format!("{case} hit"),
        median(rates).round(),
        "lookups/s",
        None,
    );
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
