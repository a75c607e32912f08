fn main(){
 for (rows,cols,rank) in [(4usize,2048usize,16usize),(8,2048,16),(16,2048,16),(24,2048,16),(32,2048,16)] {
  let l=vec![0.01f32;rows*rank]; let r=vec![0.02f32;rank*cols]; let base=vec![1f32;rows*cols]; let mut v=vec![0f32;rows*cols]; let mut d=vec![0f32;rows*cols];
  for mode in 0..3 { let mut best=f64::MAX; for _ in 0..300 { best=best.min(qmerge::simd::bench_low_rank(&l,&r,rank,cols,2.0,&base,&mut v,&mut d,mode)); }
   println!("{rows}x{cols} r{rank} mode {mode}: {:.1} GFLOP/s {:.3} ns/value", (2*rows*cols*rank) as f64/best/1e9, best*1e9/(rows*cols) as f64); }
 }
}
