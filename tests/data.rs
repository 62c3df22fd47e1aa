//! Data sets read from small files in the formats of the real ones, and from damaged ones; index files; splits.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use recant::data::Images;
use recant::dataset::{self, Form};
use recant::error::Result;
use recant::halt::never;
use recant::indices;

fn form(set: &str, about: &str) -> &'static Form {
    let forms = dataset::find(set).unwrap().forms;
    forms.iter().find(|form| form.about.starts_with(about)).unwrap()
}

fn paths(folder: &Path, form: &Form) -> Vec<PathBuf> {
    form.files.iter().map(|file| folder.join(file)).collect()
}

fn refusal(result: Result<Images>, file: &str, words: &str) {
    let error = result.expect_err(words).to_string();
    assert!(error.contains(file) && error.contains(words), "{error}");
}

/// A value for each place of each image: all different nearby.
fn value(image: usize, channel: usize, row: usize, column: usize) -> u8 {
    ((image * 97 + channel * 71 + row * 13 + column * 5) % 251) as u8
}

fn planes(image: usize) -> Vec<u8> {
    let at = |i: usize| value(image, i / 1024, i / 32 % 32, i % 32);
    (0..3072).map(at).collect()
}

/// Every pixel of every image where it should be: height x width x channels.
fn check_pixels(pixels: &[u8], first: usize, side: usize) {
    for (number, image) in pixels.chunks_exact(3 * side * side).enumerate() {
        for (i, &pixel) in image.iter().enumerate() {
            let (row, column, channel) = (i / 3 / side, i / 3 % side, i % 3);
            assert_eq!(pixel, value(first + number, channel, row, column), "image {number} at {i}");
        }
    }
}

fn binary(folder: &Path, form: &Form, labels: &[u8]) {
    for (number, path) in paths(folder, form).iter().enumerate() {
        let record = |image: usize| [labels, &planes(image)].concat();
        fs::write(path, [record(2 * number), record(2 * number + 1)].concat()).unwrap();
    }
}

/// Images in planes, 3072 bytes each, as Python 2 pickled a batch: {data: numpy array, key: list of labels}.
pub fn pickled(data: &[u8], key: &str, labels: &[u8]) -> Vec<u8> {
    let short = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
    let labels: Vec<u8> = labels.iter().flat_map(|&label| [b'K', label]).collect();
    let count = [b"J".as_slice(), &(data.len() as u32 / 3072).to_le_bytes()].concat();
    [
        b"\x80\x02}q\x01(".to_vec(),
        short("data"),
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85".to_vec(),
        short("b"),
        b"\x87R(K\x01".to_vec(),
        count,
        b"M\x00\x0c\x86cnumpy\ndtype\nq\x04".to_vec(),
        short("u1"),
        b"K\x00K\x01\x87R(K\x03".to_vec(),
        short("|"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T".to_vec(),
        (data.len() as u32).to_le_bytes().to_vec(),
        data.to_vec(),
        b"tb".to_vec(),
        short(key),
        b"](".to_vec(),
        labels,
        b"eu.".to_vec(),
    ]
    .concat()
}

fn python(folder: &Path, form: &Form, key: &str, label: u8) {
    for (number, path) in paths(folder, form).iter().enumerate() {
        let data = [planes(2 * number), planes(2 * number + 1)].concat();
        fs::write(path, pickled(&data, key, &[label, label])).unwrap();
    }
}

#[test]
fn binary_and_python_batches_of_cifar_give_the_same_images_under_two_names() {
    let folder = tempfile::tempdir().unwrap();
    let (form_b, form_p) = (form("cifar10", "binary"), form("cifar10", "python"));
    binary(folder.path(), form_b, &[7]);
    python(folder.path(), form_p, "labels", 7);
    let one = (form_b.load)(&paths(folder.path(), form_b), &never).unwrap();
    let two = (form_p.load)(&paths(folder.path(), form_p), &never).unwrap();
    assert_eq!((one.train.len(), one.test.len()), (10, 2));
    check_pixels(&one.train.pixels, 0, 32);
    check_pixels(&one.test.pixels, 10, 32);
    assert!(one.train.labels.iter().all(|&label| label == 7));
    assert_eq!((&one.train, &one.test), (&two.train, &two.test));
    assert_eq!((one.name.as_str(), two.name.as_str()), ("CIFAR-10 (binary batches)", "CIFAR-10 (python batches)"));
    // The mean by another road: floating point, one channel at a time.
    let green: Vec<f64> = one.train.pixels.iter().skip(1).step_by(3).map(|&p| f64::from(p) / 255.0).collect();
    let mean = green.iter().sum::<f64>() / green.len() as f64;
    assert!((f64::from(one.mean[1]) - mean).abs() < 1e-6);
    // By its registered name the set must be whole.
    let set = dataset::find("cifar10").unwrap();
    let found = set.locate(Some(folder.path()), &[]).unwrap().unwrap();
    assert_eq!(found, paths(folder.path(), form_b));
    refusal(
        set.load(&found, &never),
        "CIFAR-10",
        "10 training, 2 test and 0 unlabelled images, expected 50000, 10000 and 0",
    );
}

#[test]
fn cifar_100_has_two_kinds_of_labels() {
    let folder = tempfile::tempdir().unwrap();
    for (set, label, classes, key) in
        [("cifar100", 99, 100, "fine_labels"), ("cifar100_coarse", 19, 20, "coarse_labels")]
    {
        let (form_b, form_p) = (form(set, "binary"), form(set, "python"));
        binary(folder.path(), form_b, &[19, 99]);
        python(folder.path(), form_p, key, label);
        let one = (form_b.load)(&paths(folder.path(), form_b), &never).unwrap();
        let two = (form_p.load)(&paths(folder.path(), form_p), &never).unwrap();
        assert_eq!((one.classes.len(), &one.train), (classes, &two.train));
        assert_eq!(*one.train.labels, [u32::from(label); 2]);
        check_pixels(&one.train.pixels, 0, 32);
    }
    let classes =
        &(form("cifar100", "binary").load)(&paths(folder.path(), form("cifar100", "binary")), &never).unwrap().classes;
    assert!(classes.is_sorted());
}

#[test]
fn damaged_batches_of_cifar_are_errors_that_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let form_b = form("cifar10", "binary");
    binary(folder.path(), form_b, &[7]);
    let files = paths(folder.path(), form_b);
    let whole = fs::read(&files[2]).unwrap();
    fs::write(&files[2], &whole[..whole.len() - 1]).unwrap();
    refusal((form_b.load)(&files, &never), "data_batch_3.bin", "6145 bytes, expected a multiple of 3073");
    fs::write(&files[2], []).unwrap();
    refusal((form_b.load)(&files, &never), "data_batch_3.bin", "0 bytes");
    let mut wrong = whole.clone();
    wrong[3073] = 10;
    fs::write(&files[2], &wrong).unwrap();
    refusal((form_b.load)(&files, &never), "data_batch_3.bin", "image 1 has the label 10, expected 0 to 9");

    let form_p = form("cifar10", "python");
    python(folder.path(), form_p, "labels", 7);
    let files = paths(folder.path(), form_p);
    let whole = fs::read(&files[0]).unwrap();
    for cut in (0..whole.len()).step_by(211) {
        fs::write(&files[0], &whole[..cut]).unwrap();
        refusal((form_p.load)(&files, &never), "data_batch_1", "broken");
    }
    for at in (0..160).chain(whole.len() - 20..whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        fs::write(&files[0], &bytes).unwrap();
        if let Err(error) = (form_p.load)(&files, &never) {
            assert!(error.to_string().contains("data_batch_1"), "{error}");
        }
    }
}

#[test]
fn stl10_is_turned_upright_and_keeps_its_unlabelled_part() {
    let folder = tempfile::tempdir().unwrap();
    let form = form("stl10_unlabelled", "binary");
    let files = paths(folder.path(), form);
    // Column by column within each plane.
    let image = |image: usize| (0..27648).map(move |i| value(image, i / 9216, i % 96, i / 96 % 96));
    fs::write(&files[0], (0..3).flat_map(image).collect::<Vec<u8>>()).unwrap();
    fs::write(&files[1], [1, 10, 5]).unwrap();
    fs::write(&files[2], image(3).collect::<Vec<u8>>()).unwrap();
    fs::write(&files[3], [2]).unwrap();
    fs::write(&files[4], (4..6).flat_map(image).collect::<Vec<u8>>()).unwrap();
    let images = (form.load)(&files, &never).unwrap();
    assert_eq!(images.size, [3, 96, 96]);
    assert_eq!((&**images.train.labels, &**images.test.labels), (&[0, 9, 4][..], &[1][..]));
    check_pixels(&images.train.pixels, 0, 96);
    check_pixels(&images.test.pixels, 3, 96);
    check_pixels(&images.unlabelled.pixels, 4, 96);
    assert!((dataset::find("stl10").unwrap().forms[0].load)(&files[..4], &never).unwrap().unlabelled.is_empty());
    fs::write(&files[1], [1, 0, 5]).unwrap();
    refusal((form.load)(&files, &never), "train_y.bin", "image 1 has the label 0, expected 1 to 10");
    fs::write(&files[1], [1, 5]).unwrap();
    refusal((form.load)(&files, &never), "train_y.bin", "2 labels for the 3 images");
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn picture(number: usize, side: u32) -> DynamicImage {
    let pixel = |x: u32, y: u32| Rgb([0, 1, 2].map(|c| value(number, c, y as usize, x as usize)));
    RgbImage::from_fn(side, side, pixel).into()
}

/// A file as Hugging Face's library writes it, two rows a group, or a thousand where there are many.
pub fn parquet(path: &Path, image: &str, label: &str, rows: &[(Vec<u8>, i64)]) {
    let schema = format!(
        "message schema {{ optional group {image} {{ optional binary bytes; optional binary path (STRING); }} \
         optional int64 {label}; }}"
    );
    let schema = Arc::new(parquet::schema::parser::parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::default()).unwrap();
    for rows in rows.chunks(if rows.len() < 1000 { 2 } else { 1000 }) {
        let mut group = writer.next_row_group().unwrap();
        let (deep, flat) = (vec![2; rows.len()], vec![1; rows.len()]);
        let bytes: Vec<ByteArray> = rows.iter().map(|(bytes, _)| bytes.clone().into()).collect();
        let names: Vec<ByteArray> = rows.iter().map(|_| "x".into()).collect();
        let labels: Vec<i64> = rows.iter().map(|(_, label)| *label).collect();
        for values in [bytes, names] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&deep), None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&flat), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn parquet_copies_are_named_by_their_encoding() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |format: ImageFormat| -> Vec<(Vec<u8>, i64)> {
        (0..5).map(|number| (encoded(&picture(number, 32), format), number as i64)).collect()
    };
    for (set, name, image, label) in [
        ("cifar10", "CIFAR-10", "img", "label"),
        ("cifar100", "CIFAR-100", "img", "fine_label"),
        ("cifar100_coarse", "CIFAR-100 superclasses", "img", "coarse_label"),
        ("svhn", "SVHN", "image", "label"),
    ] {
        let form = form(set, "parquet");
        let files = paths(folder.path(), form);
        for file in &files {
            parquet(file, image, label, &rows(ImageFormat::Png));
        }
        let images = (form.load)(&files, &never).unwrap();
        assert_eq!(images.name, format!("{name} (PNG copy)"));
        assert_eq!(*images.train.labels, [0, 1, 2, 3, 4]);
        check_pixels(&images.train.pixels, 0, 32);
        for file in &files {
            parquet(file, image, label, &rows(ImageFormat::Jpeg));
        }
        let lossy = (form.load)(&files, &never).unwrap();
        assert_eq!(lossy.name, format!("{name} (JPEG copy)"));
        assert_ne!(lossy.train.pixels, images.train.pixels);
    }
}

#[test]
fn damaged_parquet_files_are_errors_that_name_the_row() {
    let folder = tempfile::tempdir().unwrap();
    let form = form("svhn", "parquet");
    let files = paths(folder.path(), form);
    let good: Vec<(Vec<u8>, i64)> = (0..3).map(|i| (encoded(&picture(i, 32), ImageFormat::Png), 1)).collect();
    parquet(&files[1], "image", "label", &good);
    let with = |row: (Vec<u8>, i64)| [good.clone(), vec![row]].concat();
    let png = good[0].0.clone();
    for (rows, words) in [
        (with((png.clone(), 10)), "row 3: the label 10, expected 0 to 9"),
        (with((png.clone(), -1)), "row 3: the label -1"),
        (with((encoded(&picture(0, 31), ImageFormat::Png), 0)), "row 3: it has 31x31 pixels, expected 32x32"),
        (with((encoded(&picture(0, 32), ImageFormat::Jpeg), 0)), "JPEG and PNG are mixed"),
        (with((png[..png.len() / 2].to_vec(), 0)), "the image of row 3"),
        (with((Vec::new(), 0)), "the image of row 3"),
    ] {
        parquet(&files[0], "image", "label", &rows);
        refusal((form.load)(&files, &never), "train-00000", words);
    }
    parquet(&files[0], "image", "digit", &good);
    refusal((form.load)(&files, &never), "train-00000", "`digit`, expected label");
    parquet(&files[0], "image", "label", &good);
    let whole = fs::read(&files[0]).unwrap();
    for cut in (0..whole.len()).step_by(101) {
        fs::write(&files[0], &whole[..cut]).unwrap();
        refusal((form.load)(&files, &never), "train-00000", "not a whole parquet file");
    }
    for at in (0..whole.len()).step_by(7) {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&files[0], &bytes).unwrap();
            if let Err(error) = (form.load)(&files, &never) {
                assert!(error.to_string().contains("train-00000"), "{error}");
            }
        }
    }
}

#[test]
fn a_folder_of_images_counts_in_the_order_of_names() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |name: &str, image: &DynamicImage| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, encoded(image, ImageFormat::Png)).unwrap();
    };
    write("train/dog/b.png", &picture(3, 8));
    write("train/cat/z.PNG", &picture(1, 8));
    write("train/dog/a.png", &picture(2, 8));
    write("train/cat/a.png", &picture(0, 8));
    write("test/dog/1.png", &picture(4, 8));
    write("validation/cat/1.png", &picture(5, 8));
    fs::write(root.join("train/.hidden"), "x").unwrap();
    let set = dataset::find("folder").unwrap();
    let load = || set.load(&set.locate(Some(root), &[]).unwrap().unwrap(), &never);
    let images = load().unwrap();
    assert_eq!(images.classes, ["cat", "dog"]);
    assert_eq!(*images.train.labels, [0, 0, 1, 1]);
    check_pixels(&images.train.pixels, 0, 8);
    check_pixels(&images.test.pixels, 4, 8);
    check_pixels(&images.validation.pixels, 5, 8);
    let mut of = |path: &Path| Ok(fs::read(path).unwrap().len().to_string());
    let digest = dataset::folder::digest(root, &mut of).unwrap();
    fs::rename(root.join("train/dog/b.png"), root.join("train/dog/c.png")).unwrap();
    assert_ne!(dataset::folder::digest(root, &mut of).unwrap(), digest);

    write("train/dog/d.png", &picture(0, 9));
    refusal(load(), "d.png", "9x9 pixels, expected 8x8");
    fs::write(root.join("train/dog/d.png"), "no image").unwrap();
    refusal(load(), "d.png", "format");
    fs::remove_file(root.join("train/dog/d.png")).unwrap();
    write("test/wolf/a.png", &picture(0, 8));
    refusal(load(), "wolf", "no training images of the class `wolf`; there are `cat` and `dog`");
    fs::remove_dir_all(root.join("test")).unwrap();
    fs::write(root.join("train/dog/notes.txt"), "x").unwrap();
    refusal(load(), "notes.txt", "expected a PNG or JPEG");
    fs::remove_dir_all(root.join("train")).unwrap();
    refusal(load(), root.to_str().unwrap(), "no images");

    let grey = GrayImage::from_fn(4, 4, |x, y| Luma([(x * 16 + y) as u8])).into();
    fs::remove_dir_all(root.join("validation")).unwrap();
    write("train/one/a.png", &grey);
    let images = load().unwrap();
    assert_eq!((images.size, images.train.pixels[1], images.test.len()), ([1, 4, 4], 16, 0));
}

#[test]
fn an_absent_set_says_what_to_put_where() {
    let folder = tempfile::tempdir().unwrap();
    for set in dataset::DATASETS.iter().filter(|set| set.name != "digits" && set.name != "folder") {
        let folders = [folder.path().to_owned()];
        assert_eq!(set.locate(None, &folders).unwrap(), None, "{}", set.name);
        let error = set.absent(None, &folders).to_string();
        for form in set.forms {
            assert!(error.contains(form.files[0]) && error.contains(form.folders[0]), "{error}");
            assert!(form.origin.len() == 1 || form.origin.len() == form.files.len());
            for remote in form.origin {
                assert!(error.contains(remote.url) && remote.url.starts_with("https://"), "{error}");
                assert!(remote.md5.is_empty() || remote.md5.len() == 32);
            }
        }
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The `.npy` files were written by numpy: `np.save(.., np.array([7, 0, 1999], dtype))`, a mask, floats, a square.
#[test]
fn index_files_of_numpy_and_of_text_are_read() {
    for kind in ["i4", "i8", "u4", "u8"] {
        let path = fixture(&format!("indices-{kind}.npy"));
        assert_eq!(indices::read(&path, 2000).unwrap(), [7, 0, 1999]);
        let error = indices::read(&path, 1999).unwrap_err().to_string();
        assert!(error.contains("position 2: 1999 is out of range, expected 0 to 1998"), "{error}");
    }
    for (name, words) in [
        ("mask", "numpy.flatnonzero"),
        ("float", "`<f8`, expected int32"),
        ("square", "(2, 2), expected one dimension"),
        ("negative", "position 1: -1 is out of range"),
    ] {
        let error = indices::read(&fixture(&format!("indices-{name}.npy")), 9).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("x.txt");
    for (content, words) in [
        ("3\n\n4\n3\n", "line 4: 3 comes twice, first at line 1"),
        ("3\n9\n", "line 2: 9 is out of range, expected 0 to 8"),
        ("3\n-1\n", "line 2: -1 is out of range"),
        ("3\nfour\n", "line 2: `four` is not an index"),
        ("99999999999999999999999999999999999999999999\n", "line 1: `9999"),
    ] {
        fs::write(&text, content).unwrap();
        let error = indices::read(&text, 9).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("x.txt"), "{error}");
    }
    fs::write(&text, " 3\r\n\n4").unwrap();
    assert_eq!(indices::read(&text, 9).unwrap(), [3, 4]);

    let whole = fs::read(fixture("indices-i8.npy")).unwrap();
    let cut = folder.path().join("cut.npy");
    for length in 0..whole.len() {
        fs::write(&cut, &whole[..length]).unwrap();
        assert!(indices::read(&cut, 2000).unwrap_err().to_string().contains("cut.npy"));
    }
}

#[test]
fn indices_are_written_as_numpy_writes_them_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    indices::write(&path, &[7, 0, 1999]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(fixture("indices-i8.npy")).unwrap());
    for name in ["y.npy", "y.txt"] {
        let all: Vec<u32> = (0..1000).rev().collect();
        indices::write(&folder.path().join(name), &all).unwrap();
        assert_eq!(indices::read(&folder.path().join(name), 1000).unwrap(), all);
    }
    assert!(indices::write(&folder.path().join("z.csv"), &[1]).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

fn recant(folder: &Path, args: &[&str]) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_recant"));
    command.args(args).current_dir(folder).env_remove("RECANT_STORE").env_remove("RECANT_DATA").env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

const SPLIT: &str = "recipe = 1\n[stages.images]\nkind = \"dataset\"\nsource = \"digits\"\n\
    [stages.split]\nkind = \"split\"\ndata = \"images\"\nforget = { share = 0.1 }\n";

#[test]
fn a_split_goes_out_as_indices_and_comes_in_again() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("r.toml"), SPLIT).unwrap();
    let (code, text) = recant(here, &["indices", "r.toml", "split", "-o", "f.txt"]);
    assert!(code == 1 && text.contains("not there yet"), "{text}");
    assert_eq!(recant(here, &["run", "r.toml"]).0, 0);
    let (code, text) = recant(here, &["indices", "r.toml", "split", "-o", "f.npy"]);
    assert!(code == 0 && text.contains("144 indices"), "{text}");
    assert_eq!(recant(here, &["indices", "r.toml", "split", "--side", "retain", "-o", "r.txt"]).0, 0);
    let forget = indices::read(&here.join("f.npy"), 1438).unwrap();
    let mut all = indices::read(&here.join("r.txt"), 1438).unwrap();
    all.extend(&forget);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..1438));
    // In again: the same forget set.
    fs::write(here.join("s.toml"), SPLIT.replace("share = 0.1", "file = \"f.npy\"")).unwrap();
    assert_eq!(recant(here, &["run", "s.toml"]).0, 0);
    assert_eq!(recant(here, &["indices", "s.toml", "split", "-o", "g.npy"]).0, 0);
    assert_eq!(fs::read(here.join("f.npy")).unwrap(), fs::read(here.join("g.npy")).unwrap());
    let (code, text) = recant(here, &["indices", "r.toml", "images", "-o", "x.txt"]);
    assert!(code == 2 && text.contains("expected a stage that makes a split"), "{text}");
    fs::write(here.join("f.npy"), "rubbish").unwrap();
    let (code, text) = recant(here, &["run", "s.toml"]);
    assert!(code == 1 && text.contains("f.npy") && text.contains("not a numpy file"), "{text}");
}

#[test]
fn a_folder_of_images_runs_through_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for (number, class) in ["cat", "dog"].into_iter().cycle().take(8).enumerate() {
        let path = here.join("pets/train").join(class);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(format!("{number}.png")), encoded(&picture(number, 8), ImageFormat::Png)).unwrap();
    }
    let recipe = SPLIT.replace("source = \"digits\"", "source = \"folder\"\npath = \"pets\"").replace("0.1", "0.25");
    fs::write(here.join("r.toml"), &recipe).unwrap();
    let (code, text) = recant(here, &["run", "r.toml"]);
    assert_eq!(code, 0, "{text}");
    assert!(recant(here, &["run", "r.toml"]).1.contains("nothing to run"));
    fs::write(here.join("pets/train/cat/9.png"), encoded(&picture(9, 8), ImageFormat::Png)).unwrap();
    let (_, text) = recant(here, &["plan", "r.toml"]);
    assert!(text.contains("2 to run"), "{text}");
    fs::write(here.join("r.toml"), recipe.replace("path = \"pets\"\n", "")).unwrap();
    let (code, text) = recant(here, &["run", "r.toml"]);
    assert!(code == 2 && text.contains("needs a `path`"), "{text}");
    fs::write(here.join("r.toml"), recipe.replace("\"pets\"", "\"none\"")).unwrap();
    let (code, text) = recant(here, &["run", "r.toml"]);
    assert!(code == 1 && text.contains("no such folder"), "{text}");
}

#[test]
fn validation_takes_its_share_of_every_class() {
    let images = dataset::find("digits").unwrap().load(&[], &never).unwrap();
    let labels = &images.train.labels;
    let (apart, left) = dataset::stratified(labels, 10, 0.3, &recant::rng::Rng::new(1).fork("validation"));
    let mut both = [apart.clone(), left.clone()].concat();
    both.sort_unstable();
    assert!(both.into_iter().eq(0..labels.len() as u32));
    for class in 0..10 {
        let count = |of: &[u32]| of.iter().filter(|&&index| labels[index as usize] == class).count();
        let whole = count(&apart) + count(&left);
        assert_eq!(count(&apart), (whole as f64 * 0.3).round() as usize, "class {class}");
    }
    let (other, _) = dataset::stratified(labels, 10, 0.3, &recant::rng::Rng::new(2).fork("validation"));
    assert_ne!(apart, other);
}
