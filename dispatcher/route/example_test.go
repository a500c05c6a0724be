// SPDX-License-Identifier: Apache-2.0

package route_test

import (
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/route"
)

func ExampleCompile() {
	table, err := route.Compile([]route.Rule{
		{Host: "shop.example", Path: "/static/", Pool: "files"},
		{Host: "*.example", Header: route.Match{Name: "x-beta", Value: "1"}, Pool: "beta"},
		{Cookie: route.Match{Name: "srv", Value: "b2"}, Pool: "two"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(table.Lookup(route.Request{Host: "shop.example:8080", Path: "/static/logo.png"}))
	fmt.Println(table.Lookup(route.Request{
		Host: "shop.example", Path: "/cart",
		Header: func(name string) (string, bool) { return "1", name == "x-beta" },
	}))
	fmt.Println(table.Lookup(route.Request{Host: "shop.example", Path: "/cart"}))
	// Output:
	// files true
	// beta true
	//  false
}

func ExampleRuleError() {
	_, err := route.Compile([]route.Rule{{Host: "shop.example:80", Pool: "files"}})
	fmt.Println(err)
	// Output: routes[0]: host: "shop.example:80": leave the port out: a service's addresses say it
}
