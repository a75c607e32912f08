// Documents that a page must cope with, made here: large, hostile, growing, and nearly empty.

// Numbers that are the same in every run.
function random(seed) {
    let state = seed;
    return () => {
        state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
        return state / 2 ** 32;
    };
}

export const HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror=\"window.hacked = 2\">",
    "<!--<script>",
    "model.layers.0.'\"&lt;b>.weight",
    "{{data}}${window.hacked = 3}",
    "\u202egnp.\u2028\u0000",
];

function weight(name, draw, more = {}) {
    const delta_rms = 1e-4 * 10 ** (2 * draw());
    const survival = Math.min(1, delta_rms * 200) + 0.02 * draw();
    const noise_to_delta = 1 + draw();
    return {
        name, from: "nf4", to: "nf4", shape: [1024, 512], delta_rms, weight_rms: 0.04, error_rms: delta_rms * noise_to_delta,
        survival, noise_to_delta, changed_fraction: draw(), max_abs_error: 0.01 * draw(), ...more,
    };
}

function report(weights, more = {}) {
    return {
        schema_version: 1,
        tool: { name: "qmerge", version: "0.1.0" },
        base: { path: "models/base", format: "nf4", bytes: 5e8 },
        adapters: [{ path: "adapters/one", peft_type: "LORA", weight: 0.5, sha256: "ab".repeat(32), tensors: 8, merged: 6, replaced: 1, unused: 1,
            unused_tensors: ["left.over"], ignored: [{ tensor: "x", reason: "not needed" }] }],
        output: { path: "merged", format: "nf4", bytes: 5e8 },
        rounding: { method: "nearest" },
        summary: { weights_merged: weights.length, elements: 1e9, survival: 0.4, noise_to_delta: 1.2, changed_fraction: 0.9, nonfinite: 0,
            seconds: 1.5, bytes_read: 1e9, bytes_written: 5e8, peak_rss_bytes: 3e7 },
        verdict: { effect: "weakened", text: "the adapter's effect is weakened: in the weights the delta has 0.40 of its strength (survival). Behaviour is unknown: the merged model was not run", advice: "keep the adapter apart" },
        weights,
        warnings: [],
        ...more,
    };
}

// 10,000 weights: a mixture of experts, a vision tower, embeddings.
export function large() {
    const draw = random(1);
    const weights = [];
    for (let layer = 0; layer < 60; layer += 1) {
        for (const module of ["q_proj", "k_proj", "v_proj", "o_proj"]) weights.push(weight(`model.layers.${layer}.self_attn.${module}.weight`, draw));
        for (let expert = 0; expert < 54; expert += 1) {
            for (const module of ["gate_proj", "up_proj", "down_proj"]) weights.push(weight(`model.layers.${layer}.mlp.experts.${expert}.${module}.weight`, draw));
        }
    }
    for (let layer = 0; layer < 9; layer += 1) {
        for (const module of ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]) weights.push(weight(`vision.blocks.${layer}.${module}.weight`, draw));
    }
    weights.push(weight("model.embed_tokens.weight", draw, { from: "bf16", to: "bf16", shape: [32000, 512] }));
    while (weights.length < 10000) weights.push(weight(`head.${weights.length % 4}.extra_${weights.length}.weight`, draw));
    return report(weights);
}

// Names, paths and messages that try to be markup.
export function hostile() {
    const draw = random(2);
    const bad = HOSTILE[0];
    const weights = [...HOSTILE, ...HOSTILE.map((name) => `model.layers.1.${name}`)].map((name) => weight(name, draw, { from: HOSTILE[1], rounding: bad }));
    return report(weights, {
        base: { path: bad, format: HOSTILE[1], bytes: "many" },
        adapters: [{ path: HOSTILE[1], peft_type: bad, unused_tensors: HOSTILE, ignored: [{ tensor: bad, reason: bad }], base_model: bad, sha256: bad }],
        output: { path: "out" },
        rounding: { method: bad, seed: bad },
        verdict: { effect: "constructor", text: bad, advice: HOSTILE[1] },
        warnings: HOSTILE,
        tool: { name: bad, version: bad },
    });
}

// Fields that are to come, and fields that are missing.
export function growing() {
    const draw = random(3);
    const weights = [];
    for (let layer = 0; layer < 12; layer += 1) {
        for (const module of ["q_proj", "down_proj"]) {
            weights.push(weight(`model.layers.${layer}.${module}.weight`, draw, { kept_output: draw(), noise_output: 3 * draw(), rounding: layer % 2 ? "nearest" : "shaped", new_field: { a: 1 } }));
        }
    }
    weights.push({ name: "model.layers.3.bare.weight" }, { name: "model.layers.4.still.weight", delta_rms: 0, kept_output: 1, noise_output: 0 }, { name: "norm.weight", survival: null, delta_rms: null }, {});
    const all = report(weights, { rounding: { method: "shaped", reason: "`--fast`: no data", seed: 7, calibration: "text.txt" } });
    all.summary = { survival: 0.99 };
    all.behaviour = { kl: 0.0123, kl_base: 0.35, kl_share: 0.035, kl_share_se: 0.004, top1: 0.93, tokens: 752, text: "that the model wrote", new_field: 1 };
    return all;
}

export function converted() {
    const draw = random(4);
    const weights = Array.from({ length: 24 }, (_, i) => weight(`h.${i}.attn.c_attn.weight`, draw, { from: "bf16", survival: null, noise_to_delta: null, delta_rms: 0, error_rms: 0.003 }));
    return report(weights, { adapters: [], verdict: { effect: "converted", text: "24 weights were converted; there was no adapter to judge" } });
}

// An adapter as it is before any training.
export function untrained() {
    const weights = Array.from({ length: 24 }, (_, i) => weight(`model.layers.${i}.q_proj.weight`, random(5), { survival: null, noise_to_delta: null, delta_rms: 0, error_rms: 0, kept_output: 1, noise_output: 0 }));
    return report(weights, {
        summary: { weights_merged: 24, survival: null, noise_to_delta: null, kept_output: 1, noise_output: 0 },
        verdict: { effect: "none", text: "the adapter changes nothing: its delta is zero" },
        warnings: ["its B factors are all zero"],
    });
}

// Names that no line has room for, and figures that are none.
export function extreme() {
    const draw = random(6);
    const long = (n) => "x".repeat(n);
    const weights = [];
    for (let i = 0; i < 5000; i += 1) {
        const none = i % 7 ? {} : { survival: null, noise_to_delta: null, delta_rms: null, error_rms: null, kept_output: null };
        weights.push(weight(`${long(100)}.layers.${i % 50}.${"deep.".repeat(30)}${long(300)}_${Math.floor(i / 50)}.weight`, draw, { kept_output: draw(), noise_output: draw(), ...none }));
    }
    return report(weights, {
        base: { path: long(400) }, output: { path: `out/${long(300)}` }, command: `qmerge ${long(900)} 'a b'`, warnings: Array(40).fill(long(700)),
        adapters: [{ path: `/a${"/b".repeat(300)}/${long(400)}` }],
        verdict: { effect: "lost", text: `the adapter ${long(500)}: ${long(500)}`, advice: long(600) },
    });
}

// A merge as it is written, by the name of its folder.
export function merged(name, more = {}, behaviour = {}) {
    const draw = random(name.length);
    const weights = [];
    for (let layer = 0; layer < 30; layer += 1) {
        for (const module of ["self_attn.q_proj", "mlp.down_proj"]) weights.push(weight(`model.layers.${layer}.${module}.weight`, draw, { kept_output: draw() }));
    }
    return report(weights, {
        date: "2026-01-31T12:34:56Z", command: `qmerge merge --base base-nf4 --adapter 'my lora' -o runs/${name}`,
        base: { path: "base-nf4", format: "nf4", bytes: 5e8 }, output: { path: `runs/${name}`, format: "nf4", bytes: 5e8 },
        adapters: [{ path: "run/checkpoint-100", peft_type: "LORA", weight: 1, sha256: "cd".repeat(32), tensors: 2, merged: 2 }],
        behaviour: { kl: 0.01, kl_base: 0.5, kl_share: 0.02, kl_share_se: 0.001, top1: 0.97, tokens: 560, text: "that the model wrote", ...behaviour },
        verdict: { effect: "kept", kept: 0.98, by: "behaviour", text: "the adapter's effect is kept: 98.0 ± 0.1 % of it is left in what the model predicts, on 560 tokens" },
        ...more,
    });
}

export const empty = () => ({ schema_version: 1, output: {}, weights: [] });

function model(name, loss, kl, gain_kept, generations) {
    return { name, loss, perplexity: Math.exp(loss), kl, kl_se: kl / 20, top1: 1 - kl, gain_kept, first_divergence: 3, tokens_per_second: 20, generations };
}

// Two merges and nothing else.
export function compared() {
    return {
        schema_version: 1, text: "eval.txt", context: 128, windows: 64, tokens: 8128, prompts: ["In the", HOSTILE[0]],
        models: [
            model("base", 3.0, 0.3, 0, ["beginning was a dog", "x"]),
            model("apart", 2.5, 0, 1, ["beginning was the Word", "x y"]),
            model("out/a-rather-long-name-of-a-merge-that-someone-gave-to-a-folder-without-thinking", 2.52, 0.01, 0.96, ["beginning was the Word", "x z"]),
            model("elsewhere/worse", 3.1, 0.5, -0.2, ["beginnings", ""]),
        ],
    };
}

// The adapter does nothing good on this text.
export function unhelpful() {
    const found = compared();
    found.models = [model("base", 2.4, 0.3, 0, []), model("apart", 2.5, 0, 1, []), model("merged", 2.45, 0.1, 0.5, [])];
    return found;
}
