//! The bytes are those of TensorBoard's own writer.

use super::*;

/// Check values of RFC 3720, appendix B.4.
#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// `fixture.tfevents` is made by `fixture.py` with tensorboard 2.21.
#[test]
fn the_bytes_are_tensorboards() {
    let time = 1_700_000_000.25;
    let named =
        |values: &[(&str, f64)]| values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect::<Vec<_>>();
    let events = [
        version_event(time),
        scalar_event(time, 1, &named(&[("train/loss", 4.125), ("train/lr", 0.0)])),
        start_event(time, 301),
        scalar_event(time, 70_000, &named(&[("eval/loss", f64::NAN), ("eval/größe", -1e-30)])),
    ];
    let mut bytes = Vec::new();
    for event in &events {
        write_record(&mut bytes, event).expect("in memory");
    }
    assert_eq!(bytes, include_bytes!("fixture.tfevents"));
}

#[test]
fn files_of_one_folder_are_in_order() {
    let folder = std::env::temp_dir().join(format!("mdl-tfevents-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a scratch folder");
    let mut paths = Vec::new();
    for step in 0..3 {
        let mut events = EventFile::create(&folder).expect("made");
        events.scalars(step, &[("train/loss".to_string(), 1.0)]).expect("written");
        events.flush().expect("flushed");
        paths.push(events.path().to_path_buf());
    }
    assert!(paths.is_sorted_by(|a, b| a < b), "{paths:?}");
    // The version, 24 bytes and its frame of 16, then the numbers.
    assert!(paths.iter().all(|path| fs::metadata(path).is_ok_and(|facts| facts.len() > 60)));
    let _ = fs::remove_dir_all(&folder);
}
