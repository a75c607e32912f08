//! Disks without room.

use super::*;

/// Where the system refuses, the status is 3.
#[cfg(target_os = "linux")]
#[test]
fn too_little_space() {
    // A base that claims more than any disk has, as a sparse file.
    let folder = model();
    let path = folder.join(BASE);
    let big: u64 = 4 << 40;
    let json = format!(
        "{{\"model.big.weight\":{{\"dtype\":\"U8\",\"shape\":[{big}],\"data_offsets\":[0,{big}]}},\"x\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[{big},{big}]}}}}"
    );
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    if file.set_len(bytes.len() as u64 + big).is_err() {
        eprintln!("skipped: this file system has no sparse files of 4 TiB");
        return;
    }
    let output = run(folder.path(), &["convert", "--base", "base", "--to", "f16", "-o", "out"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("not enough space"));
    assert!(!folder.join("out").exists() && !folder.join("out.partial").exists());
    let read = read(&folder.join(ADAPTER));
    write(&folder.join(ADAPTER), &read);
}

/// A disk that fills up while the output is written: a tiny file system, where this process may mount one.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up() {
    let folder = model();
    let disk = folder.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64M,nr_inodes=4", "tmpfs"])
        .arg(&disk)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("skipped: no right to mount a file system");
        return;
    }
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "disk/out"]);
    let exists = disk.join("out").exists();
    let unmounted = std::process::Command::new("umount").arg(&disk).status().is_ok_and(|status| status.success());
    assert!(unmounted);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("No space left") && stderr(&output).contains("--resume"), "{}", stderr(&output));
    assert!(!exists);
}
