// Millstream's topics as a Go program sees them, by franz-go.
//
//	clients produce SERVERS REGISTRY TOPIC SCHEMA COUNT USERS
//	clients consume SERVERS REGISTRY TOPIC COUNT
//
// produce sends COUNT clicks of USERS users, keyed by user id, in Confluent's wire format.
// consume prints, as JSON, the request ids of the first COUNT committed recommendations.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/hamba/avro/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

const deadline = 60 * time.Second

// Event has the fields of a UserEvent that a click fills in; the others are null.
type Event struct {
	EventID   string              `avro:"event_id"`
	UserID    string              `avro:"user_id"`
	ItemID    *string             `avro:"item_id"`
	EventType string              `avro:"event_type"`
	EventTime time.Time           `avro:"event_time"`
	Value     *float64            `avro:"value"`
	RequestID *string             `avro:"request_id"`
	Position  *int                `avro:"position"`
	Surface   *string             `avro:"surface"`
	Device    *string             `avro:"device"`
	Country   *string             `avro:"country"`
	Profile   []map[string]string `avro:"profile"`
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 7 && args[0] == "produce" {
		return produce(ctx, args[1], args[2], args[3], args[4], number(args[5]), number(args[6]))
	}
	if len(args) == 5 && args[0] == "consume" {
		return consume(ctx, args[1], args[2], args[3], number(args[4]))
	}
	return fmt.Errorf("produce SERVERS REGISTRY TOPIC SCHEMA COUNT USERS | consume SERVERS REGISTRY TOPIC COUNT")
}

func produce(ctx context.Context, servers, registry, topic, path string, count, users int) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	schema, err := avro.Parse(string(text))
	if err != nil {
		return err
	}
	id, err := registered(ctx, registry, topic+"-value", string(text))
	if err != nil {
		return err
	}
	// The default partitioner places keys as Kafka's own does.
	client, err := kgo.NewClient(kgo.SeedBrokers(servers), kgo.DefaultProduceTopic(topic))
	if err != nil {
		return err
	}
	defer client.Close()
	now := time.Now()
	records := make([]*kgo.Record, count)
	for i := range records {
		user, item := fmt.Sprintf("go-user-%d", i%users), fmt.Sprintf("item-%d", i%7)
		datum, err := avro.Marshal(schema, Event{
			EventID:   fmt.Sprintf("go-%d", i),
			UserID:    user,
			ItemID:    &item,
			EventType: "CLICK",
			EventTime: now,
		})
		if err != nil {
			return err
		}
		framed := binary.BigEndian.AppendUint32([]byte{0}, uint32(id))
		records[i] = &kgo.Record{Key: []byte(user), Value: append(framed, datum...), Timestamp: now}
	}
	return client.ProduceSync(ctx, records...).FirstErr()
}

func consume(ctx context.Context, servers, registry, topic string, count int) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(servers),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	schemas := map[uint32]avro.Schema{}
	found := []string{}
	for len(found) < count {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, record := range fetches.Records() {
			id := binary.BigEndian.Uint32(record.Value[1:5])
			if schemas[id] == nil {
				if schemas[id], err = known(ctx, registry, id); err != nil {
					return err
				}
			}
			var answer map[string]any
			if err := avro.Unmarshal(schemas[id], record.Value[5:], &answer); err != nil {
				return err
			}
			if answer["user_id"] != string(record.Key) {
				return fmt.Errorf("key %q of the answer to %v", record.Key, answer["user_id"])
			}
			found = append(found, answer["request_id"].(string))
		}
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

// registered gives the id of a schema, which the registry learns if it does not know it.
func registered(ctx context.Context, registry, subject, text string) (int, error) {
	body, err := json.Marshal(map[string]string{"schema": text})
	if err != nil {
		return 0, err
	}
	var found struct{ ID int }
	err = ask(ctx, http.MethodPost, registry+"/subjects/"+subject+"/versions", body, &found)
	return found.ID, err
}

func known(ctx context.Context, registry string, id uint32) (avro.Schema, error) {
	var found struct{ Schema string }
	err := ask(ctx, http.MethodGet, fmt.Sprintf("%s/schemas/ids/%d", registry, id), nil, &found)
	if err != nil {
		return nil, err
	}
	return avro.Parse(found.Schema)
}

func ask(ctx context.Context, method, url string, body []byte, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, url, answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%q is no number\n", text)
		os.Exit(2)
	}
	return n
}
