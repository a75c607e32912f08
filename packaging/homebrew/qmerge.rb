# Homebrew's recipe. packaging/finish fills in what stands between @ signs when a release is made.
class Qmerge < Formula
  desc "Merge LoRA adapters into plain and quantized checkpoints on disk"
  homepage "@REPOSITORY@"
  version "@VERSION@"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
      url "@REPOSITORY@/releases/download/v@VERSION@/qmerge-@VERSION@-aarch64-apple-darwin.tar.gz"
      sha256 "@MACOS_ARM@"
    end
    on_intel do
      url "@REPOSITORY@/releases/download/v@VERSION@/qmerge-@VERSION@-x86_64-apple-darwin.tar.gz"
      sha256 "@MACOS_INTEL@"
    end
  end

  on_linux do
    on_arm do
      url "@REPOSITORY@/releases/download/v@VERSION@/qmerge-@VERSION@-aarch64-unknown-linux-musl.tar.gz"
      sha256 "@LINUX_ARM@"
    end
    on_intel do
      url "@REPOSITORY@/releases/download/v@VERSION@/qmerge-@VERSION@-x86_64-unknown-linux-musl.tar.gz"
      sha256 "@LINUX_INTEL@"
    end
  end

  def install
    bin.install "qmerge"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/qmerge.bash" => "qmerge"
    zsh_completion.install "completions/qmerge.zsh" => "_qmerge"
    fish_completion.install "completions/qmerge.fish"
  end

  test do
    system bin/"qmerge", "demo", "--output", testpath/"demo"
    assert_path_exists testpath/"demo"
  end
end
