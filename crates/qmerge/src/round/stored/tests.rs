use super::*;
use crate::round::store;

struct Two;

impl Calibration for Two {
    fn about(&self) -> String {
        "two layers".into()
    }

    fn identity(&self) -> Result<String> {
        Ok("two layers".into())
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in ["a", "b"] {
            let weights: Vec<String> =
                ["q", "k"].map(|w| format!("{layer}.{w}")).into_iter().filter(|name| wanted(name)).collect();
            let values = vec![1.0, 0.5, 0.5, 3.0 + layer.len() as f32];
            take.known(Known {
                weights,
                moments: InputMoments { features: 2, tokens: 7, values },
                detail: Detail::Full,
            })?;
            take.layer()?;
        }
        Ok(())
    }
}

fn base(path: &Path, first: u8) -> Checkpoint {
    let names = ["a.q", "a.k", "b.q", "b.k"];
    let data: Vec<Vec<u8>> = (0..4).map(|i| vec![first + i; 8]).collect();
    let views = names.iter().zip(&data).map(|(name, data)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 2], data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
    Checkpoint::open(path).unwrap()
}

fn open(path: &Path, base: &Checkpoint) -> Result<StoredCalibration> {
    let weights = crate::formats::inventory(base)?.weights;
    StoredCalibration::open(path, &Names::new(base, &weights, &[])?)
}

/// Moments of one of the layers, or of both, of so many tokens.
struct Tokens(&'static [&'static str], usize, f32);

impl Calibration for Tokens {
    fn about(&self) -> String {
        format!("{} tokens", self.1)
    }

    fn identity(&self) -> Result<String> {
        Ok(self.about())
    }

    fn each(&mut self, _: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for layer in self.0 {
            let weights = ["q", "k"].map(|w| format!("{layer}.{w}")).to_vec();
            let values = vec![self.2, 0.0, 0.0, 1.0];
            take.known(Known {
                weights,
                moments: InputMoments { features: 2, tokens: self.1, values },
                detail: Detail::Full,
            })?;
            take.layer()?;
        }
        Ok(())
    }
}

#[test]
fn moments_add_up_by_tokens_and_layers_stand_side_by_side() {
    use super::super::AddedCalibration;
    let folder = std::env::temp_dir().join(format!("qmerge-added-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let model = base(&folder.join("m.safetensors"), 1);
    let mut files = Vec::new();
    for (number, mut part) in
        [Tokens(&["b"], 30, 4.0), Tokens(&["a"], 10, 1.0), Tokens(&["a", "b"], 30, 2.0)].into_iter().enumerate()
    {
        let path = folder.join(format!("{number}.safetensors"));
        store(&model, &mut part, Dtype::F32, &path).unwrap();
        files.push(open(&path, &model).unwrap());
    }
    let mut added = AddedCalibration::new(files).unwrap();
    assert_eq!(added.weights().collect::<Vec<_>>(), ["a.q", "a.k", "b.q", "b.k"]);
    let mut seen = Vec::new();
    added
        .each(&|_| true, &mut |known: Known| {
            seen.push((known.weights[0].clone(), known.moments.tokens, known.moments.values[0]));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [("a.q".to_owned(), 40, 1.75), ("b.q".to_owned(), 60, 3.0)]);
    assert_eq!(added.demand().layers.len(), 2);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_stored_comes_back() {
    let folder = std::env::temp_dir().join(format!("qmerge-stored-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (model, other) = (base(&folder.join("m.safetensors"), 1), base(&folder.join("o.safetensors"), 2));
    let path = folder.join("moments.safetensors");
    for dtype in [Dtype::F32, Dtype::BF16] {
        store(&model, &mut Two, dtype, &path).unwrap();
        // Readable by the format's own crate too.
        safetensors::SafeTensors::deserialize(&std::fs::read(&path).unwrap()).unwrap();
        let mut stored = open(&path, &model).unwrap();
        assert!(stored.about().starts_with("two layers, stored in "));
        let mut seen = Vec::new();
        stored
            .each(&|name| name != "a.k", &mut |known: Known| {
                seen.push(known);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].weights, ["a.q"]);
        assert_eq!(seen[1].weights, ["b.q", "b.k"]);
        assert_eq!(seen[1].moments, InputMoments { features: 2, tokens: 7, values: vec![1.0, 0.5, 0.5, 4.0] });
        let error = open(&path, &other).unwrap_err().to_string();
        assert!(error.contains("belongs to another model"), "{error}");
    }
    let error = open(&folder.join("m.safetensors"), &model).unwrap_err().to_string();
    assert!(error.contains("not a calibration"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_the_file_says_of_itself_is_not_believed() {
    let folder = std::env::temp_dir().join(format!("qmerge-hostile-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let model = base(&folder.join("m.safetensors"), 1);
    let path = folder.join("moments.safetensors");
    store(&model, &mut Two, Dtype::F32, &path).unwrap();
    let metadata = Checkpoint::open_weights(&path).unwrap().metadata.concat();
    let open = |inputs: &str, shape: [usize; 2], value: f32| {
        let mut metadata: std::collections::HashMap<String, String> = metadata.iter().cloned().collect();
        metadata.insert(INPUTS.into(), inputs.into());
        let data: Vec<u8> = vec![value; shape[0] * shape[1]].into_iter().flat_map(f32::to_le_bytes).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &data).unwrap();
        safetensors::serialize_to_file([("a.q", view)], Some(metadata), &path).unwrap();
        let mut stored = self::open(&path, &model)?;
        stored.each(&|_| true, &mut |known: Known| super::super::Metric::new(known.moments).map(|_| ()))
    };
    let good = r#"[{"layer": 0, "tokens": 1, "weights": ["a.q", "a.k"]}]"#;
    open(good, [2, 2], 0.5).unwrap();
    for (inputs, shape, value, text) in [
        ("", [2, 2], 0.5, "not understood"),
        (r#"[{"layer": 0, "tokens": 1, "weights": []}]"#, [2, 2], 0.5, "no square tensor"),
        (r#"[{"layer": 0, "tokens": 1, "weights": ["b.q"]}]"#, [2, 2], 0.5, "no square tensor"),
        (r#"[{"layer": 0, "tokens": 1, "weights": ["a.q", "a.q"]}]"#, [2, 2], 0.5, "stands twice"),
        (good, [2, 1], 0.5, "no square tensor"),
        (good, [2, 2], f32::NAN, "is NaN"),
        (good, [2, 2], f32::INFINITY, "is inf"),
        (good, [2, 2], -0.5, "no square is"),
    ] {
        let error = open(inputs, shape, value).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(text == "not understood" || error.hint().is_some(), "{error:?}");
    }
    // Nothing is known of any input: nothing comes.
    open("[]", [0, 0], 0.5).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}
