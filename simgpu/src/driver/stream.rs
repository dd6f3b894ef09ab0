//! Streams, events and captures. A stream does what it is told at once; a capturing one records it.

use super::errors::Code;
use super::graph::{Graph, Task, perform};
use super::{Done, Event, State, Stream, give, run, state};
use std::ffi::{c_int, c_uint};
use std::time::Instant;

/// The modes of a capture: 0 global, 1 of the thread, 2 relaxed.
const RELAXED: c_uint = 2;

impl State {
    /// The capture that a stream takes part in.
    fn capture_of(&self, stream: u64) -> Option<u64> {
        self.streams.get(&stream).and_then(|s| s.capture)
    }
}

pub(super) fn is_capturing(stream: u64) -> bool {
    state().capture_of(stream).is_some()
}

/// Calls that wait, or act at once, break a strict capture, as they do on a real driver.
pub(super) fn forbid_in_capture() -> Done {
    let mut s = state();
    let mut any = false;
    for graph in s.captures.values_mut().filter(|g| g.strict) {
        graph.broken = true;
        any = true;
    }
    if any { Err(Code::CaptureUnsupported) } else { Ok(()) }
}

pub(super) fn enqueue(stream: u64, task: Task) -> Done {
    {
        let mut s = state();
        // The default streams, 0 to 2, are always there.
        if stream > 2 && !s.streams.contains_key(&stream) {
            return Err(Code::InvalidHandle);
        }
        if let Some(capture) = s.capture_of(stream) {
            let graph = s.captures.get_mut(&capture).ok_or(Code::IllegalState)?;
            if graph.broken {
                return Err(Code::CaptureInvalidated);
            }
            graph.tasks.push(task);
            return Ok(());
        }
    }
    perform(&task)
}

fn create(to: *mut u64) -> Done {
    let id = {
        let mut s = state();
        let id = s.id();
        s.streams.insert(id, Stream::default());
        id
    };
    // SAFETY: the driver's contract.
    unsafe { give(to, id) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(to: *mut u64, _flags: c_uint) -> i32 {
    run(|| create(to))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut u64, _flags: c_uint, _priority: c_int) -> i32 {
    run(|| create(to))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> i32 {
    run(|| state().streams.remove(&stream).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> i32 {
    run(|| {
        let mut s = state();
        if let Some(capture) = s.capture_of(stream) {
            if let Some(graph) = s.captures.get_mut(&capture) {
                graph.broken = true;
            }
            return Err(Code::CaptureUnsupported);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: u64) -> i32 {
    cuStreamSynchronize(stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) -> i32 {
    run(|| {
        let mut s = state();
        let id = s.id();
        let found = s.streams.get_mut(&stream).ok_or(Code::CaptureUnsupported)?;
        if found.capture.is_some() {
            return Err(Code::IllegalState);
        }
        (found.capture, found.origin) = (Some(id), true);
        s.captures.insert(id, Graph { strict: mode != RELAXED, streams: vec![stream], ..Graph::default() });
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: u64, to: *mut u64) -> i32 {
    run(|| {
        let (id, broken) = {
            let mut s = state();
            let found = s.streams.get(&stream).ok_or(Code::InvalidHandle)?;
            let capture = found.capture.filter(|_| found.origin).ok_or(Code::IllegalState)?;
            let graph = s.captures.remove(&capture).ok_or(Code::IllegalState)?;
            for stream in &graph.streams {
                if let Some(stream) = s.streams.get_mut(stream) {
                    (stream.capture, stream.origin) = (None, false);
                }
            }
            let broken = graph.broken;
            let id = s.id();
            if !broken {
                s.graphs.insert(id, graph);
            }
            (id, broken)
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, if broken { 0 } else { id })? };
        if broken { Err(Code::CaptureInvalidated) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) -> i32 {
    run(|| {
        let value = {
            let s = state();
            let graph = s.capture_of(stream).and_then(|id| s.captures.get(&id));
            graph.map_or(0, |g| if g.broken { 2 } else { 1 })
        };
        // SAFETY: the driver's contract.
        unsafe { give(status, value) }
    })
}

/// A stream that waits for an event of a capture takes part in it from then on.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> i32 {
    run(|| {
        let mut s = state();
        let capture = s.events.get(&event).ok_or(Code::InvalidHandle)?.capture;
        if let Some(capture) = capture.filter(|id| s.captures.contains_key(id)) {
            let found = s.streams.get_mut(&stream).ok_or(Code::InvalidHandle)?;
            match found.capture {
                None => {
                    found.capture = Some(capture);
                    if let Some(graph) = s.captures.get_mut(&capture) {
                        graph.streams.push(stream);
                    }
                }
                Some(other) if other != capture => return Err(Code::CaptureUnsupported),
                Some(_) => {}
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(to: *mut u64, _flags: c_uint) -> i32 {
    run(|| {
        let id = {
            let mut s = state();
            let id = s.id();
            s.events.insert(id, Event::default());
            id
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, id) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> i32 {
    run(|| state().events.remove(&event).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> i32 {
    run(|| {
        let mut s = state();
        let capture = s.capture_of(stream);
        let event = s.events.get_mut(&event).ok_or(Code::InvalidHandle)?;
        event.capture = capture;
        event.at = Some(Instant::now());
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: u64) -> i32 {
    run(|| {
        let s = state();
        let event = s.events.get(&event).ok_or(Code::InvalidHandle)?;
        match event.capture {
            Some(id) if s.captures.contains_key(&id) => Err(Code::CaptureUnsupported),
            _ => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: u64) -> i32 {
    cuEventSynchronize(event)
}

fn elapsed(to: *mut f32, start: u64, end: u64) -> Done {
    let ms = {
        let s = state();
        let at = |event: u64| s.events.get(&event).and_then(|e| e.at).ok_or(Code::InvalidHandle);
        at(end)?.duration_since(at(start)?).as_secs_f32() * 1e3
    };
    // SAFETY: the driver's contract.
    unsafe { give(to, ms) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(to: *mut f32, start: u64, end: u64) -> i32 {
    run(|| elapsed(to, start, end))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(to: *mut f32, start: u64, end: u64) -> i32 {
    run(|| elapsed(to, start, end))
}
