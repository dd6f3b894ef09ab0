//! What a person sees of a run: a line that stays in place on a terminal, plain lines elsewhere, JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mdl_runtime::event::{Event, Observer, Step};
use serde_json::{Value, json};

/// How often a plain line is printed.
const EVERY: Duration = Duration::from_secs(5);

/// How much is said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Quiet,
    Person,
    Json,
}

pub(crate) struct Progress {
    mode: Mode,
    bar: Option<ProgressBar>,
    /// FLOP/s that this machine has shown, for the share of it that training uses.
    peak_flops: f64,
    began: Instant,
    shown: Option<Instant>,
    /// Steps and time since the stage's first step.
    first: Option<(u64, Instant)>,
    /// A mean of recent step times, in seconds, that forgets.
    step_s: f64,
}

impl Progress {
    pub(crate) fn new(mode: Mode, peak_flops: f64) -> Progress {
        let began = Instant::now();
        Progress { mode, bar: None, peak_flops, began, shown: None, first: None, step_s: 0.0 }
    }

    fn say(&mut self, line: &str) {
        if self.mode != Mode::Person {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(line),
            None => print_line(line),
        }
    }

    fn step(&mut self, step: &Step) {
        let first = *self.first.get_or_insert((step.step, Instant::now()));
        let took = step.took.as_secs_f64();
        self.step_s = if self.step_s == 0.0 { took } else { 0.95 * self.step_s + 0.05 * took };
        if self.peak_flops > 0.0 {
            // On a busy machine the peak is measured too low; what a step reaches, the machine can do.
            self.peak_flops = self.peak_flops.max(step.flops as f64 / self.step_s);
        }
        // What a step really takes holds evaluation and saving too.
        let done = step.step - first.0;
        let whole = if done > 0 { first.1.elapsed().as_secs_f64() / done as f64 } else { took };
        let left = Duration::from_secs_f64(whole * (step.of - step.step) as f64);
        let is_last = step.step == step.of;
        if std::io::stderr().is_terminal() {
            let numbers = self.numbers(step, left);
            let bar = self.bar.get_or_insert_with(|| {
                let style =
                    ProgressStyle::with_template("{bar:20} {pos}/{len}  {msg}").unwrap_or(ProgressStyle::default_bar());
                ProgressBar::new(step.of).with_style(style)
            });
            bar.set_position(step.step);
            bar.set_message(numbers);
            if let Some(bar) = self.bar.take_if(|_| is_last) {
                bar.finish();
            }
        } else if is_last || self.shown.is_none_or(|shown| shown.elapsed() >= EVERY) {
            self.shown = Some(Instant::now());
            let line = format!("  step {}/{}  {}", step.step, step.of, self.numbers(step, left));
            self.say(&line);
        }
    }

    fn numbers(&self, step: &Step, left: Duration) -> String {
        let mut text = format!("loss {:.4}", step.loss);
        text.push_str(&format!("  {} tokens/s", group(step.tokens as f64 / self.step_s)));
        if self.peak_flops > 0.0 {
            text.push_str(&format!("  {:.0}% of peak", 100.0 * step.flops as f64 / self.step_s / self.peak_flops));
        }
        text.push_str(&format!("  {}  {} left", HumanBytes(step.peak_bytes), time(left)));
        text
    }
}

impl Observer for Progress {
    fn observe(&mut self, event: Event) {
        match self.mode {
            Mode::Quiet => {}
            Mode::Json => print_line(&to_json(&event).to_string()),
            Mode::Person => self.person(&event),
        }
    }
}

impl Progress {
    fn person(&mut self, event: &Event) {
        let line = match event {
            Event::Stepped(step) => return self.step(step),
            Event::Started { stage, kind } => {
                (self.first, self.step_s, self.shown) = (None, 0.0, None);
                format!("{kind} {stage}")
            }
            Event::Unchanged { stage } => format!("{stage}: nothing has changed"),
            Event::Replaced { stage, to } => {
                format!("{stage}: made of other things before; that is now in {}", to.display())
            }
            Event::Data { summary, .. } => format!("  {summary}"),
            Event::Compiled { parameters, peak_bytes, took, .. } => {
                let parameters = group(*parameters as f64);
                format!(
                    "  {parameters} parameters, {} of memory, compiled in {:.2} s",
                    HumanBytes(*peak_bytes),
                    took.as_secs_f64()
                )
            }
            Event::Resumed { step, .. } => format!("  goes on after step {step}"),
            Event::Evaluated { step, part, values, .. } => {
                let values: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
                format!("  step {step} on {part}: {}", values.join(", "))
            }
            Event::Saved { path, .. } => format!("  saved {}", path.display()),
            Event::Sampled { text, .. } => format!("  ┊ {}", text.trim_end().replace('\n', "\n  ┊ ")),
            Event::Ended { step, why, .. } => format!("  ends at step {step}: {why}"),
            Event::Finished { took, .. } => format!("  done in {}", time(*took)),
            Event::Warned(text) => format!("warning: {text}"),
        };
        if matches!(event, Event::Ended { .. } | Event::Finished { .. })
            && let Some(bar) = self.bar.take()
        {
            bar.finish();
        }
        self.say(&line);
    }

    /// The last line of a run.
    pub(crate) fn finish(&mut self, out: &std::path::Path) {
        let line = format!("everything is up to date in {} ({})", out.display(), time(self.began.elapsed()));
        self.say(&line);
    }
}

/// Standard output may be closed early, by `head` say: that ends nothing.
pub(crate) fn print_line(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn group(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn time(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

fn to_json(event: &Event) -> Value {
    let pairs = |values: &[(String, f64)]| -> Value {
        values.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<serde_json::Map<_, _>>().into()
    };
    match event {
        Event::Started { stage, kind } => json!({"event": "started", "stage": stage, "kind": kind}),
        Event::Unchanged { stage } => json!({"event": "unchanged", "stage": stage}),
        Event::Replaced { stage, to } => json!({"event": "replaced", "stage": stage, "to": to}),
        Event::Data { stage, summary } => json!({"event": "data", "stage": stage, "summary": summary}),
        Event::Compiled { stage, parameters, peak_bytes, took } => json!({
            "event": "compiled", "stage": stage, "parameters": parameters, "peak_bytes": peak_bytes,
            "seconds": took.as_secs_f64(),
        }),
        Event::Resumed { stage, step } => json!({"event": "resumed", "stage": stage, "step": step}),
        Event::Stepped(step) => json!({
            "event": "step", "stage": step.stage, "step": step.step, "of": step.of, "loss": step.loss, "lr": step.lr,
            "grad_norm": step.grad_norm, "tokens": step.tokens, "step_ms": step.took.as_secs_f64() * 1e3,
            "peak_bytes": step.peak_bytes, "metrics": pairs(&step.metrics),
        }),
        Event::Evaluated { stage, step, part, values } => {
            json!({"event": "evaluated", "stage": stage, "step": step, "on": part, "values": pairs(values)})
        }
        Event::Saved { stage, step, path } => json!({"event": "saved", "stage": stage, "step": step, "path": path}),
        Event::Sampled { stage, step, text } => json!({"event": "sampled", "stage": stage, "step": step, "text": text}),
        Event::Ended { stage, step, why } => json!({"event": "ended", "stage": stage, "step": step, "why": why}),
        Event::Finished { stage, took } => json!({"event": "finished", "stage": stage, "seconds": took.as_secs_f64()}),
        Event::Warned(text) => json!({"event": "warning", "text": text}),
    }
}
