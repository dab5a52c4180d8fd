package sim
import ("testing";"time";"context";"math";"fmt")
func TestZZ(t *testing.T){
 for _, law := range []Law{Exponential, Lognormal} {
 for _, zipf := range []float64{1,1.2} {
 for _, load := range []float64{70,80} {
 var sum,sq,p99,reg,bo,mean float64
 n:=30
 for seed:=range n {
  s:=Base(); s.Name="real"; s.Seed=uint64(seed+1); s.Nodes=3; s.Cores=4; s.Load=load; s.Service=40*time.Millisecond; s.Law=law; s.Spread=1.8
  s.FixedSize=false; s.Session=10; s.Think=time.Second; s.RTT=time.Millisecond; s.Handshake=0
  s.Resolvers=3; s.Zipf=zipf; s.TTL=1000*time.Hour; s.Cold=true; s.WarmUp=20*time.Second; s.Measured=60*time.Second
  s.Measure=Requests; s.Full=1
  r,err:=Run(context.Background(),s,nil); if err!=nil{t.Fatal(err)}
  sum+=r.Redirected; sq+=r.Redirected*r.Redirected; p99+=r.P99; reg+=r.Regretted; bo+=r.Bounced; mean+=r.Mean
 }
 m:=sum/float64(n)
 fmt.Printf("%v zipf %v load %v: redirected %.2f sd %.2f p99 %.0f mean %.0f regretted %.1f bounced %.1f\n",law,zipf,load,m,math.Sqrt(sq/float64(n)-m*m),p99/float64(n),mean/float64(n),reg/float64(n),bo/float64(n))
 }}}
}
