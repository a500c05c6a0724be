package synproxy
import ("testing";"errors";"fmt";"github.com/cilium/ebpf")
func TestLoad(t *testing.T){
 var o synproxyObjects
 err:=loadSynproxyObjects(&o,nil)
 var ve *ebpf.VerifierError
 if errors.As(err,&ve){ l:=ve.Log; if len(l)>30{l=l[len(l)-30:]}; for _,x:=range l{fmt.Println(x)} }
 if err!=nil{t.Fatal(err)}
 i,_:=o.RehomeSynproxy.Info(); n,_:=i.Instructions(); fmt.Println(len(n)); v,_:=i.VerifiedInstructions(); fmt.Println(v)
 o.Close()
}
