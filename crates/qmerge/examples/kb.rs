
fn main(){
  let (rows,cols,rank)=(32usize,2048usize,16usize);
  let l=vec![0.01f32;rows*rank]; let r=vec![0.02f32;rank*cols]; let base=vec![1f32;rows*cols]; let mut v=vec![0f32;rows*cols]; let mut d=vec![0f32;rows*cols];
  for mode in 0..3 { let mut best=f64::MAX; for _ in 0..200 { best=best.min(qmerge::simd::bench_low_rank(&l,&r,rank,cols,2.0,&base,&mut v,&mut d,mode)); }
   println!("mode {mode}: {:.1} GFLOP/s {:.3} ns/value", (2*rows*cols*rank) as f64/best/1e9, best*1e9/(rows*cols) as f64); }
}
