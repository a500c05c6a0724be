// SPDX-License-Identifier: Apache-2.0

package forecast_test

import (
	"fmt"

	"github.com/rehome-net/rehome/dispatcher/forecast"
)

// A load that rises steadily is taken for what it will be; after a sudden fall the measurement counts.
func ExampleSeries() {
	series, err := forecast.New(forecast.Config{Window: 4})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, load := range []float64{0.2, 0.3, 0.4, 0.5, 0.1} {
		e, err := series.Observe(load)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("measured %.2f forecast %.2f error %.2f value %.2f\n", e.Measured, e.Forecast, e.Error, e.Value)
	}
	// Output:
	// measured 0.20 forecast 0.20 error 0.00 value 0.20
	// measured 0.30 forecast 0.40 error 0.33 value 0.37
	// measured 0.40 forecast 0.50 error 0.00 value 0.50
	// measured 0.50 forecast 0.60 error 0.00 value 0.60
	// measured 0.10 forecast 0.20 error 1.00 value 0.10
}
