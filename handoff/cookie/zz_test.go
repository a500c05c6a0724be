package cookie
import ("testing";"errors";"fmt";"github.com/cilium/ebpf")
func TestLoad(t *testing.T){
 a,err:=Open(Config{Interface:"lo",Parameters:Parameters{Secret:Secret{1}}})
 var ve *ebpf.VerifierError
 if errors.As(err,&ve){ l:=ve.Log; if len(l)>60{l=l[len(l)-60:]}; for _,x:=range l{fmt.Println(x)} }
 if err!=nil{t.Fatal(err)}
 i,_:=a.objects.RehomeCookie.Info(); n,_:=i.Instructions(); fmt.Println(len(n)); v,_:=i.VerifiedInstructions(); fmt.Println(v)
 a.Close()
}
