package forward
import ("testing";"time";"github.com/cilium/ebpf")
func TestZZ(t *testing.T){ spec,_:=loadForward(); for n,m:=range spec.Maps{ if n[0]!='.' {m.MaxEntries=min(m.MaxEntries,1<<14)}; _=m}
 for name,p:=range spec.Programs { s:=spec.Copy(); for k:=range s.Programs { if k!=name {delete(s.Programs,k)}}; t0:=time.Now(); c,err:=ebpf.NewCollectionWithOptions(s,ebpf.CollectionOptions{Programs:ebpf.ProgramOptions{LogLevel:ebpf.LogLevelStats}}); if err!=nil{t.Logf("%s %+v",name,err);continue}; t.Log(name,time.Since(t0), p.Type, c.Programs[name].VerifierLog); c.Close()}}
