//! `compare` and `generate` on the demo model.

use std::io::Write;
use std::process::Stdio;

use crate::model::{Folder, change, demo, qmerge, read, refused, run, stderr, stdout, write};

const SOURCES: [&str; 4] = ["--base", "base-nf4", "--adapter", "adapter"];

#[test]
fn compare_shows_what_a_merge_lost() {
    let folder = Folder::new();
    demo(folder.path());
    for (more, out) in [(["--rounding", "nearest"], "nf4"), (["--to", "f32"], "f32"), (["--seed", "0"], "kept")] {
        let output = run(folder.path(), &[&["merge"], &SOURCES[..], &more, &["-o", out]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
    let more = [
        "--merged",
        "nf4",
        "--merged",
        "f32",
        "--merged",
        "kept",
        "--text",
        text,
        "--context",
        "128",
        "--windows",
        "6",
        "--json",
    ];
    let compare = |threads: &str| {
        let output = run(folder.path(), &[&["compare"], &SOURCES[..], &more, &["--threads", threads]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let found = compare("1");
    let model = |number: usize, key: &str| found["models"][number][key].as_f64().unwrap();
    assert_eq!(found["tokens"], 6 * 127);
    assert_eq!(found["models"][1]["name"], "apart");
    // The adapter helps; the merge into NF4 keeps little of that, the one into f32 all.
    assert!(model(1, "loss") < model(0, "loss") - 0.1);
    assert!(model(2, "gain_kept") < 0.5 && model(2, "kl") > 0.01, "{found:#}");
    assert!((model(3, "gain_kept") - 1.0).abs() < 1e-4 && model(3, "kl").abs() < 1e-6, "{found:#}");
    assert!(model(4, "gain_kept") > 0.9 && model(4, "kl") < 0.3 * model(2, "kl"), "{found:#}");
    assert_eq!(model(3, "top1"), 1.0);
    assert_eq!(found["models"][3]["generations"], found["models"][1]["generations"]);
    // The number of threads changes no figure.
    let again = compare("3");
    for number in 0..5 {
        for key in ["loss", "kl", "top1"] {
            assert_eq!(again["models"][number][key], found["models"][number][key]);
        }
    }
}

#[test]
fn generation_is_repeatable() {
    let folder = Folder::new();
    demo(folder.path());
    let generate = |more: &[&str]| {
        let args = [&["generate"], &SOURCES[..], &["--prompt", "And the", "--max-tokens", "20"], more].concat();
        let output = run(folder.path(), &args);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(generate(&[]), generate(&["--threads", "1", "--max-memory", "300M"]));
    let drawn = generate(&["--temperature", "1", "--seed", "3"]);
    assert_eq!(drawn, generate(&["--temperature", "1", "--seed", "3"]));
    assert_ne!(drawn, generate(&["--temperature", "1", "--seed", "4"]));
}

/// Each line is a message, and what was said before stands in the template.
#[test]
fn a_chat_goes_on_line_by_line() {
    let folder = Folder::new();
    demo(folder.path());
    let template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    std::fs::write(folder.join("base-nf4/chat_template.jinja"), template).unwrap();
    let generate = |more: &[&str], said: &str| {
        let args = [&["generate"], &SOURCES[..], &["--max-tokens", "6", "-q"], more].concat();
        let output = crate::model::with_input(folder.path(), &args, said);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let chat = ["--chat", "--system", "Be brief."];
    let said = generate(&chat, "And the\n\nIn the beginning\n/exit\nnot read\n");
    let one = generate(&[&chat[..], &["--prompt", "And the"]].concat(), "");
    let first = one.strip_suffix('\n').unwrap();
    // What the second answer continues, written out.
    let prompt =
        format!("[system] Be brief.\n[user] And the\n[assistant] {first}\n[user] In the beginning\n[assistant]");
    assert_eq!(generate(&chat, ""), "");
    std::fs::write(folder.join("base-nf4/chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let two = generate(&["--chat", "--prompt", &prompt], "");
    assert_eq!(said, format!("{one}{two}"));
    for (args, words) in [(&["--system", "x", "--prompt", "y"][..], "--chat"), (&[], "there is nothing to continue")] {
        let args = [&["generate"], &SOURCES[..], args].concat();
        let output = crate::model::with_input(folder.path(), &args, "");
        assert!(!output.status.success() && stderr(&output).contains(words), "{}", stderr(&output));
    }
    // Said before the first line is read.
    std::fs::write(
        folder.join("base-nf4/chat_template.jinja"),
        "{{ raise_exception('no system') if messages[0].role == 'system' }}",
    )
    .unwrap();
    let output = crate::model::with_input(folder.path(), &[&["generate"], &SOURCES[..], &chat].concat(), "");
    assert!(
        stderr(&output).contains("no system") && stderr(&output).contains("leave out --system"),
        "{}",
        stderr(&output)
    );
}

const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
const GENERATE: [&str; 7] = ["generate", "--base", "base-nf4", "--prompt", "And the", "--max-tokens", "2"];

fn compare<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["compare"], &SOURCES[..], more].concat()
}

/// Both commands refuse.
fn both_refused(folder: &Folder, texts: &[&str]) {
    refused(folder, &GENERATE, texts);
    refused(folder, &compare(&["--text", EVAL, "--windows", "1"]), texts);
}

#[test]
fn unfit_texts_are_named() {
    let folder = Folder::new();
    demo(folder.path());
    std::fs::write(folder.join("nothing.txt"), "").unwrap();
    std::fs::write(folder.join("blank.txt"), " \n").unwrap();
    std::fs::write(folder.join("binary.txt"), b"abc\xff\xfe").unwrap();
    std::fs::write(folder.join("short.txt"), "In the beginning").unwrap();
    for (text, said) in [
        ("nothing.txt", &["nothing.txt", "empty", "hint"][..]),
        ("blank.txt", &["blank.txt", "empty", "hint"]),
        ("binary.txt", &["binary.txt", "UTF-8", "byte at 3", "hint"]),
        ("short.txt", &["short.txt", "of the 512 tokens that a window takes", "--context"]),
    ] {
        refused(&folder, &compare(&["--text", text]), said);
    }
    refused(&folder, &compare(&["--text", EVAL, "--prompts", "binary.txt"]), &["binary.txt", "UTF-8"]);
    refused(&folder, &compare(&["--text", EVAL, "--context", "1"]), &["less than 2 tokens", "--context"]);
    refused(&folder, &compare(&["--text", EVAL, "--windows", "0"]), &["no windows", "--windows"]);
    refused(&folder, &compare(&["--text", EVAL, "--max-memory", "1M"]), &["--max-memory 1M is not enough"]);
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", ""], &["no tokens", "--prompt"]);
    // The demo model was made for 512 positions.
    let long = ["base-nf4", "config.json", "made for 512", "--context", "shorter prompt"];
    refused(&folder, &compare(&["--text", EVAL, "--context", "513"]), &long);
    let prompt = "word ".repeat(600);
    refused(&folder, &["generate", "--base", "base-nf4", "--prompt", &prompt], &long);
    std::fs::write(folder.join("long.txt"), prompt).unwrap();
    refused(&folder, &compare(&["--text", EVAL, "--prompts", "long.txt"]), &long);
}

/// What knows fewer tokens than the text has is named before any model runs.
#[test]
fn a_merge_of_another_model_is_named() {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(folder.path(), &["convert", "--base", "base-nf4", "--to", "f32", "-o", "small"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let (weights, config) = (folder.join("small/model.safetensors"), folder.join("small/config.json"));
    let mut tensors = read(&weights);
    for (name, _, shape, bytes) in &mut tensors {
        if name.contains("embed_tokens") || name.contains("lm_head") {
            bytes.truncate(100 * shape[1] * 4);
            shape[0] = 100;
        }
    }
    write(&weights, &tensors);
    let mut about: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    about["vocab_size"] = 100.into();
    std::fs::write(&config, about.to_string()).unwrap();
    let said = ["small", "knows 100 tokens", "another model"];
    refused(&folder, &compare(&["--merged", "small", "--text", EVAL, "--windows", "1"]), &said);
}

#[test]
fn generate_says_what_it_thinks_of_its_options_and_why_it_ended() {
    let folder = Folder::new();
    demo(folder.path());
    for (option, value, texts) in [
        ("--temperature", "-1", ["--temperature is -1", "0 or more"]),
        ("--temperature", "inf", ["--temperature is inf", "0 or more"]),
        ("--top-p", "-0.5", ["--top-p is -0.5", "above 0"]),
        ("--top-p", "1.5", ["--top-p is 1.5", "1 at most"]),
        ("--max-tokens", "-3", ["'-3'", "'--max-tokens <N>'"]),
    ] {
        let args = ["generate", "--base", "base-nf4", "--prompt", "And the", option, value];
        refused(&folder, &args, &texts);
    }
    let cut = run(folder.path(), &GENERATE);
    assert!(stderr(&cut).contains("cut off at --max-tokens 2"), "{}", stderr(&cut));
    let long = ["generate", "--base", "base-nf4", "--prompt", &"And the ".repeat(250), "--max-tokens", "4000000000"];
    let full = run(folder.path(), &long);
    assert!(full.status.success(), "{}", stderr(&full));
    let reasons = ["made for no longer text", "tokens/s"];
    assert!(reasons.iter().any(|reason| stderr(&full).contains(reason)), "{}", stderr(&full));
    assert!(!stderr(&full).contains("--max-tokens"), "{}", stderr(&full));
    // The same prompt from the standard input, with the line's end that a shell puts behind it.
    let mut args = GENERATE;
    args[4] = "-";
    let mut piped = qmerge(folder.path(), &args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(b"And the\n").unwrap();
    assert_eq!(piped.wait_with_output().unwrap().stdout, cut.stdout);
}

#[test]
fn a_model_that_overflows_is_explained_by_the_weight_that_makes_it() {
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter", "-o", "out"];
    // The delta of the first is not finite; that of the second is, and neither its square nor what it does to activations: the weight is told of, not the activations.
    for (factors, texts) in [
        ([1e20, 1e20], ["error: `model.layers.0.self_attn.v_proj.weight`", "the adapter's delta overflows"]),
        ([1e17, 1e17], ["error: `model.layers.0.self_attn.v_proj.weight`", "their squares overflow"]),
    ] {
        let folder = Folder::new();
        demo(folder.path());
        change(&folder.join("adapter/adapter_model.safetensors"), |tensors| {
            for (name, _, _, bytes) in tensors {
                let factor = ["lora_A", "lora_B"].iter().position(|factor| name.contains(factor));
                if let (Some(factor), true) = (factor, name.contains("layers.0.self_attn.v_proj")) {
                    bytes[..4].copy_from_slice(&f32::to_le_bytes(factors[factor]));
                }
            }
        });
        refused(&folder, &merge, &texts);
        assert!(!folder.join("out").exists());
    }
}

#[test]
fn unfit_tokenizers_are_named() {
    let folder = Folder::new();
    demo(folder.path());
    let tokenizer = folder.join("base-nf4/tokenizer.json");
    let good = std::fs::read(&tokenizer).unwrap();
    // One of another model knows more tokens.
    let mut foreign: serde_json::Value = serde_json::from_slice(&good).unwrap();
    for (_, id) in foreign["model"]["vocab"].as_object_mut().unwrap() {
        *id = (id.as_u64().unwrap() + 1_000_000).into();
    }
    std::fs::write(&tokenizer, foreign.to_string()).unwrap();
    both_refused(&folder, &["tokenizer.json", "token id 1000", "knows 1024", "another model"]);
    for garbage in [&b"garbage {{{"[..], b"", b"\xff\xfe", b"{\"model\": 5}", &good[..2000]] {
        std::fs::write(&tokenizer, garbage).unwrap();
        both_refused(&folder, &["tokenizer.json", "not a tokenizer", "copy it again"]);
    }
    // The library panics at what a template names and no vocabulary has.
    let mut broken: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let begins = serde_json::json!({"SpecialToken": {"id": "<nobody>", "type_id": 0}});
    broken["post_processor"]["single"].as_array_mut().unwrap().insert(0, begins);
    std::fs::write(&tokenizer, broken.to_string()).unwrap();
    let output = run(folder.path(), &["generate", "--base", "base-nf4", "--prompt", "In", "--max-tokens", "2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    std::fs::remove_file(&tokenizer).unwrap();
    both_refused(&folder, &["error: base-nf4: ", "no tokenizer.json", "copy it"]);
    std::fs::write(&tokenizer, good).unwrap();
    std::fs::write(folder.join("base-nf4/tokenizer_config.json"), "garbage").unwrap();
    both_refused(&folder, &["tokenizer_config.json", "not JSON", "copy it again"]);
}

#[test]
fn broken_chat_templates_are_named() {
    let folder = Folder::new();
    demo(folder.path());
    let chat = [&GENERATE[..], &["--chat"]].concat();
    refused(&folder, &chat, &["no chat template", "leave out --chat"]);
    for (template, said) in [
        ("{% if %}", "syntax error"),
        ("{% for m in messages %}", "end of block"),
        ("{{ messages[0].a.b }}", "undefined"),
        ("{{ raise_exception('no user') }}", "no user"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "fuel"),
        ("{{ '{:>30000000000}'.format('a') }}", "format"),
    ] {
        let config = serde_json::json!({"chat_template": template}).to_string();
        std::fs::write(folder.join("base-nf4/tokenizer_config.json"), config).unwrap();
        refused(&folder, &chat, &["tokenizer_config.json", "the chat template fails", said, "leave out --chat"]);
    }
    // A file of its own comes first.
    std::fs::write(folder.join("base-nf4/chat_template.jinja"), "{% if %}").unwrap();
    refused(&folder, &chat, &["chat_template.jinja", "the chat template fails"]);
    std::fs::write(folder.join("base-nf4/chat_template.jinja"), b"\xff").unwrap();
    refused(&folder, &chat, &["chat_template.jinja", "UTF-8"]);
}

#[test]
fn unfit_models_are_named() {
    let folder = Folder::new();
    demo(folder.path());
    let path = folder.join("base-nf4/config.json");
    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to, said) in [
        ("\"llama\"", "\"mamba\"", &["config.json", "`mamba` cannot be run", "gpt2", "llama, ", "smollm3"][..]),
        ("\"model_type\"", "\"x\"", &["config.json", "`model_type` is missing", "llama, "]),
        ("layers\": 4", "layers\": 5", &["base-nf4", "`model.layers.4.", "missing", "incomplete"]),
        (
            "hidden_size\": 128",
            "hidden_size\": 256",
            &["`model.embed_tokens.weight`", "1024 × 256", "different models"],
        ),
        ("layers\": 4", "layers\": 0", &["config.json", "`num_hidden_layers` is 0", "copy config.json"]),
        ("\"silu\"", "\"relu6\"", &["config.json", "`hidden_act` is \"relu6\""]),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        both_refused(&folder, said);
    }
    std::fs::write(&path, "{{").unwrap();
    both_refused(&folder, &["config.json", "not a JSON object"]);
    std::fs::remove_file(&path).unwrap();
    both_refused(&folder, &["base-nf4", "no config.json", "copy it"]);
    std::fs::write(&path, good).unwrap();
    let gone = "model.layers.2.post_attention_layernorm.weight";
    change(&folder.join("base-nf4/model.safetensors"), |tensors| tensors.retain(|(name, ..)| name != gone));
    both_refused(&folder, &["base-nf4", gone, "missing", "incomplete"]);
}

/// Windows stand behind BOS where the tokenizer adds it, and what the model writes begins as its texts do; with a chat template beside the adapter every
/// second sequence is a chat.
#[test]
fn sequences_begin_as_the_tokenizer_begins_them() {
    let folder = Folder::new();
    demo(folder.path());
    let config = folder.join("base-nf4/tokenizer_config.json");
    let plain: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let with = |more: &[(&str, serde_json::Value)]| {
        let mut config = plain.clone();
        more.iter().for_each(|(key, value)| config[key] = value.clone());
        config.to_string()
    };
    let compared = || {
        let args = ["--text", EVAL, "--context", "64", "--windows", "3", "--continuation", "0", "--json"];
        let output = run(folder.path(), &compare(&args));
        assert!(output.status.success(), "{}", stderr(&output));
        let found: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        (found["tokens"].as_u64().unwrap(), found["models"][1]["loss"].as_f64().unwrap())
    };
    let written = || {
        let output = run(
            folder.path(),
            &["calibrate", "--base", "base-nf4", "--adapter", "adapter", "-o", "moments.safetensors", "--force"],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        let moments = std::fs::read(folder.join("moments.safetensors")).unwrap();
        let text = stderr(&output) + &stdout(&output);
        let tokens = text.split(" tokens that the model wrote").next().unwrap().rsplit(' ').next().unwrap();
        (tokens.parse::<usize>().unwrap(), moments)
    };
    let (tokens, loss) = compared();
    assert_eq!(tokens, 3 * 63);
    let (count, moments) = written();
    assert_eq!(count, 64 * 48);

    std::fs::write(&config, with(&[("add_bos_token", true.into())])).unwrap();
    let (behind_bos, other) = compared();
    assert_eq!(behind_bos, 3 * 64);
    assert!((loss - other).abs() > 1e-6);
    let (count, from_bos) = written();
    assert_eq!(count, 64 * 48);
    assert!(moments != from_bos);

    // The same by a rule of the tokenizer itself, which its configuration may overrule.
    let tokenizer = folder.join("base-nf4/tokenizer.json");
    let mut rules: serde_json::Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    let bos = serde_json::json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    rules["post_processor"]["single"].as_array_mut().unwrap().insert(0, bos);
    rules["post_processor"]["special_tokens"] =
        serde_json::json!({"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}});
    std::fs::write(&tokenizer, rules.to_string()).unwrap();
    std::fs::write(&config, with(&[])).unwrap();
    assert_eq!(compared(), (behind_bos, other));
    std::fs::write(&config, with(&[("add_bos_token", false.into())])).unwrap();
    assert_eq!(compared(), (tokens, loss));

    // What training cut and filled up its examples to says nothing of a text.
    rules["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    rules["padding"] = serde_json::json!({"strategy": {"Fixed": 4096}, "direction": "Right", "pad_to_multiple_of": null,
                                          "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
    std::fs::write(&tokenizer, rules.to_string()).unwrap();
    assert_eq!(compared(), (tokens, loss));

    let template = "{% for m in messages %}Question: {{ m.content }}{% endfor %}";
    std::fs::write(&config, with(&[("chat_template", template.into())])).unwrap();
    assert_eq!(written().0, 64 * 48, "a template of the base alone says nothing of the adapter");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join("base-nf4").join(file), folder.join("adapter").join(file)).unwrap();
    }
    let (count, chats) = written();
    assert!(count > 64 * 48 && count.is_multiple_of(64), "{count}");
    assert!(chats != from_bos);
}
