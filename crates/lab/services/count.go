// Counts by name, in memory: `POST /count/NAME` answers with the number.
package main

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"
)

func main() {
	var lock sync.Mutex
	counts := map[string]int{}
	add := func(name string) int {
		lock.Lock()
		defer lock.Unlock()
		counts[name]++
		return counts[name]
	}
	// Something else that goes on.
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			add("ticks")
		}
	}()
	http.HandleFunc("/count/", func(response http.ResponseWriter, request *http.Request) {
		body := fmt.Sprintln(add(request.URL.Path))
		response.Header().Set("Content-Length", fmt.Sprint(len(body)))
		fmt.Fprint(response, body)
	})
	if err := http.ListenAndServe("0.0.0.0:"+os.Args[1], nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
