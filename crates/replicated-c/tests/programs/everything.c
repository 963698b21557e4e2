// All that a program can do with its state, in C11 and in C++17, before it takes part.

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "outlive_replicated.h"

#define CHECK(what)                                                                           \
    do {                                                                                      \
        if (!(what)) {                                                                        \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, outlive_last_error()); \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

#define POINT(X) X(FIELD, int32_t, x) X(FIELD, int32_t, y)
OUTLIVE_STRUCT(point, POINT)

#define THING(X)                    \
    X(FIELD, bool, open)            \
    X(FIELD, uint64_t, balance)     \
    X(FIELD, double, share)         \
    X(CHARS, owner, 16)             \
    X(OCTETS, key, 4)               \
    X(ARRAY, uint16_t, days, 7)     \
    X(STRUCT, point, where)         \
    X(STRUCTS, point, corners, 2)   \
    X(ADDED, int, limit)            \
    X(RENAMED, int8_t, mood, state) \
    X(LOCAL, void *, cache)
OUTLIVE_STRUCT(thing, THING)

OUTLIVE_DECLARE_REPLICATED(thing, one)
OUTLIVE_DEFINE_REPLICATED(thing, one)
OUTLIVE_REPLICATED(point, other)
OUTLIVE_MAP(thing, things)
OUTLIVE_BYTES_MAP(blobs)
OUTLIVE_LIST(point, points)
OUTLIVE_BYTES_LIST(lines)
OUTLIVE_COUNTER(hits)
OUTLIVE_TEXT(story)

static int opened, undone;
static int open_it(struct outlive_bytes arguments, void **value) {
    if (arguments.length == 0) return outlive_fail("nothing to open");
    if (arguments.length == 1) return 0;
    opened++;
    *value = malloc(8);
    return *value ? 0 : 1;
}
static void undo_it(void *value) {
    __atomic_add_fetch(&undone, 1, __ATOMIC_SEQ_CST);
    free(value);
}
OUTLIVE_FUNCTION(open_it, OUTLIVE_EAGER, undo_it)
static int open_late(struct outlive_bytes arguments, void **value) { return open_it(arguments, value); }
OUTLIVE_FUNCTION(open_late, OUTLIVE_LAZY, 0)
OUTLIVE_HANDLES(handles)

static uint64_t balance(void) {
    OUTLIVE_READ(one, it) return it->balance;
    return 0;
}

static void variables(void) {
    CHECK(balance() == 0);
    OUTLIVE_WRITE(one, it) {
        it->balance = 10;
        it->open = true;
        it->share = 0.5;
        snprintf(it->owner, sizeof it->owner, "Ada");
        it->days[6] = 7;
        it->corners[1].y = -1;
        it->limit = -5;
    }
    CHECK(outlive_output_check() == OUTLIVE_UNCOMMITTED);
    errno = 0;
    CHECK(outlive_write(1, "x", 1) == -1 && errno == EBUSY);
    CHECK(outlive_commit() == OUTLIVE_OK && outlive_output_check() == OUTLIVE_OK);
    // Left in the middle: ended all the same, and undone as a whole.
    for (int round = 0; round < 2; round++) {
        OUTLIVE_WRITE(one, it) {
            it->balance++;
            if (round == 0) break;
            it->balance++;
        }
    }
    CHECK(balance() == 13);
    CHECK(outlive_rollback() == OUTLIVE_OK && balance() == 10);
}

static void maps(void) {
    struct thing thing;
    memset(&thing, 0, sizeof thing);
    thing.balance = 1;
    CHECK(!things_has(outlive_string("a")) && things_copy(outlive_string("a"), &thing) == OUTLIVE_NONE);
    CHECK(things_put(outlive_string("a"), &thing) == OUTLIVE_OK && things_count() == 1);
    OUTLIVE_WRITE_AT(things, outlive_string("a"), it) it->where.x = 5;
    OUTLIVE_WRITE_AT(things, outlive_string("b"), it) CHECK(!"there is none");
    CHECK(things_copy(outlive_string("a"), &thing) == OUTLIVE_OK && thing.where.x == 5 && thing.balance == 1);
    CHECK(outlive_commit() == OUTLIVE_OK);
    CHECK(things_remove(outlive_string("a")) == OUTLIVE_OK && things_remove(outlive_string("a")) == OUTLIVE_NONE);
    CHECK(outlive_rollback() == OUTLIVE_OK && things_count() == 1);

    uint64_t number = 7;
    CHECK(blobs_put(OUTLIVE_OF(number), outlive_string("seven")) == OUTLIVE_OK);
    CHECK(blobs_put(outlive_string("z"), outlive_lend(NULL, 0)) == OUTLIVE_OK && blobs_count() == 2);
    struct outlive_bytes found = blobs_read(OUTLIVE_OF(number));
    CHECK(found.length == 5 && memcmp(found.data, "seven", 5) == 0);
    CHECK(outlive_end(found.data) == OUTLIVE_OK);
    CHECK(blobs_clear() == OUTLIVE_OK && blobs_count() == 0 && outlive_commit() == OUTLIVE_OK);
}

static int sum(void *context, struct outlive_bytes element) {
    const struct point *point = (const struct point *)element.data;
    CHECK(element.length == sizeof *point);
    *(int *)context += point->x;
    return point->x == 4;
}

static void lists(void) {
    for (int x = 1; x <= 5; x++) {
        struct point point = {x, 0};
        CHECK((x % 2 ? points_push(&point) : points_push_front(&point)) == OUTLIVE_OK);
    }
    // 4 2 1 3 5
    int total = 0;
    CHECK(points_each(sum, &total) == OUTLIVE_OK && total == 4);
    OUTLIVE_WRITE_AT(points, 4, it) it->x = 50;
    struct point point;
    CHECK(points_pop(&point) == OUTLIVE_OK && point.x == 50);
    CHECK(points_pop_front(&point) == OUTLIVE_OK && point.x == 4 && points_count() == 3);
    CHECK(points_put(0, &point) == OUTLIVE_OK && points_put(3, &point) == OUTLIVE_NONE);
    OUTLIVE_READ_AT(points, 0, it) CHECK(it->x == 4);
    CHECK(outlive_commit() == OUTLIVE_OK);

    struct outlive_buffer buffer = {0, 0};
    CHECK(lines_take(&buffer) == OUTLIVE_NONE);
    CHECK(lines_push(outlive_string("b")) == OUTLIVE_OK && lines_push_front(outlive_string("a long one")) == OUTLIVE_OK);
    CHECK(lines_take_front(&buffer) == OUTLIVE_OK && buffer.length == 10 && memcmp(buffer.data, "a long", 6) == 0);
    outlive_buffer_free(&buffer);
    outlive_buffer_free(&buffer);
    CHECK(buffer.data == NULL && lines_count() == 1 && outlive_commit() == OUTLIVE_OK);
}

static void numbers_and_texts(void) {
    CHECK(hits_add(5) == OUTLIVE_OK && hits_add(-2) == OUTLIVE_OK && hits_get() == 3);
    CHECK(story_append(outlive_string("h\xc3\xa9llo")) == OUTLIVE_OK && story_count() == 6);
    CHECK(story_replace(1, 2, outlive_string("e")) == OUTLIVE_OK);
    CHECK(story_replace(9, 1, outlive_string("")) == OUTLIVE_NONE);
    struct outlive_buffer buffer = {0, 0};
    CHECK(story_get(&buffer) == OUTLIVE_OK && buffer.length == 5 && memcmp(buffer.data, "hello", 5) == 0);
    outlive_buffer_free(&buffer);
    CHECK(outlive_commit() == OUTLIVE_OK);
    CHECK(story_append(outlive_string("\xff")) == OUTLIVE_MISUSE && outlive_commit() == OUTLIVE_MISUSE);
}

// What fails is not passed over: the transaction is undone as a whole, and says why.
static void failures(void) {
    OUTLIVE_WRITE(one, it) it->balance = 99;
    const struct thing *reading = one_read();
    CHECK(reading && reading->balance == 99);
    CHECK(one_write() == NULL && strstr(outlive_last_error(), "one"));
    CHECK(outlive_end(reading) == OUTLIVE_OK && outlive_end(reading) == OUTLIVE_MISUSE && outlive_end(NULL) == OUTLIVE_OK);
    CHECK(outlive_commit() == OUTLIVE_GUARD_ALIVE && balance() == 10);
    CHECK(outlive_commit() == OUTLIVE_OK);

    struct thing *writing = one_write();
    writing->balance = 98;
    CHECK(outlive_commit() == OUTLIVE_GUARD_ALIVE);
    CHECK(outlive_end(writing) == OUTLIVE_OK && outlive_rollback() == OUTLIVE_OK && balance() == 10);

    CHECK(outlive_map_put(&outlive__static_things, outlive_string("a"), outlive_string("short")) == OUTLIVE_MISUSE);
    CHECK(outlive_variable_read(&outlive__static_things) == NULL && outlive_variable_read(NULL) == NULL);
    CHECK(outlive_counter_get(&outlive__static_one) == 0 && outlive_count(&outlive__static_hits) == 0);
    CHECK(outlive_rollback() == OUTLIVE_OK);
    struct outlive_static forged = {"forged", 77, 0, 0};
    CHECK(outlive_variable_read(&forged) == NULL && outlive_rollback() == OUTLIVE_OK);
    CHECK(outlive_commit_async(NULL) == OUTLIVE_MISUSE && outlive_transaction(NULL, NULL) == OUTLIVE_MISUSE);
    CHECK(outlive_start(NULL, NULL) == OUTLIVE_MISUSE && outlive_start_text("x", NULL) == OUTLIVE_BAD_CONFIG);
    CHECK(strstr(outlive_last_error(), "not a configuration"));
    CHECK(outlive_hand_over() == OUTLIVE_NOT_STARTED && outlive_status(NULL) == OUTLIVE_MISUSE);
}

static int withdraw(void *context) {
    OUTLIVE_WRITE(one, it) {
        it->balance -= *(uint64_t *)context;
        if (it->balance > 10) return -1;
    }
    return 0;
}

static pthread_barrier_t both;
static int tries;

// Takes both in another order than the other thread: one of them is told, and tries again.
static int in_order(void *context) {
    int first = *(int *)context;
    __atomic_add_fetch(&tries, 1, __ATOMIC_SEQ_CST);
    static __thread int met;
    if (first) {
        OUTLIVE_WRITE(one, it) it->limit++;
    } else {
        OUTLIVE_WRITE(other, it) it->x++;
    }
    if (!met++) pthread_barrier_wait(&both);
    if (first) {
        OUTLIVE_WRITE(other, it) it->x++;
    } else {
        OUTLIVE_WRITE(one, it) it->limit++;
    }
    return 0;
}

static void *in_order_thread(void *context) {
    CHECK(outlive_transaction(in_order, context) == OUTLIVE_OK);
    return NULL;
}

static int commits_itself(void *context) {
    (void)context;
    CHECK(outlive_commit() == OUTLIVE_MISUSE && outlive_rollback() == OUTLIVE_MISUSE);
    return 0;
}

static int reply(void *context, struct outlive_reply *to) {
    ++*(int *)context;
    hits_add(1);
    return outlive_reply_append(to, outlive_string("done"));
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t heard = PTHREAD_COND_INITIALIZER;
static int told_of;
static void told(void *context, uint64_t number, enum outlive_code code) {
    CHECK(context == &told_of && number == 0 && code == OUTLIVE_OK);
    pthread_mutex_lock(&lock);
    told_of++;
    pthread_cond_signal(&heard);
    pthread_mutex_unlock(&lock);
}

static void transactions(void) {
    uint64_t amount = 4;
    CHECK(outlive_transaction(withdraw, &amount) == OUTLIVE_OK && balance() == 6);
    amount = 7;
    CHECK(outlive_transaction(withdraw, &amount) == OUTLIVE_WORK_FAILED && balance() == 6);
    CHECK(outlive_transaction(commits_itself, NULL) == OUTLIVE_OK);

    CHECK(pthread_barrier_init(&both, NULL, 2) == 0);
    pthread_t threads[2];
    int orders[2] = {0, 1};
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, in_order_thread, &orders[i]) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(tries >= 3);
    OUTLIVE_READ(other, it) CHECK(it->x == 2);
    OUTLIVE_READ(one, it) CHECK(it->limit == -3);

    int done = 0;
    struct outlive_request request = {1, 2, 3};
    for (int i = 0; i < 3; i++) {
        struct outlive_buffer said = {0, 0};
        CHECK(outlive_once(request, reply, &done, &said) == OUTLIVE_OK);
        CHECK(said.length == 4 && memcmp(said.data, "done", 4) == 0);
        outlive_buffer_free(&said);
    }
    CHECK(done == 1 && hits_get() == 4);
    request.number = 2;
    struct outlive_buffer said = {0, 0};
    CHECK(outlive_once(request, reply, &done, &said) == OUTLIVE_PASSED);
    CHECK(outlive_forget_client(1, 2) == OUTLIVE_OK && outlive_forget_client(1, 2) == OUTLIVE_NONE);

    uint64_t number = 5;
    hits_add(1);
    CHECK(outlive_commit_async(&number) == OUTLIVE_OK && number == 0);
    CHECK(outlive_commit_poll(number) == OUTLIVE_OK && outlive_commit_wait(number) == OUTLIVE_OK);
    CHECK(outlive_commit_then(number, told, &told_of) == OUTLIVE_OK);
    pthread_mutex_lock(&lock);
    while (!told_of) pthread_cond_wait(&heard, &lock);
    pthread_mutex_unlock(&lock);
}

static void functions(void) {
    struct outlive_bytes key = outlive_string("k");
    CHECK(OUTLIVE_OPEN(handles, key, open_it, outlive_string("")) == OUTLIVE_CALL_FAILED);
    CHECK(strstr(outlive_last_error(), "nothing to open") && outlive_rollback() == OUTLIVE_OK);
    CHECK(OUTLIVE_OPEN(handles, key, open_it, outlive_string("1")) == OUTLIVE_CALL_FAILED);
    CHECK(outlive_rollback() == OUTLIVE_OK && handles_use(key) == NULL);
    CHECK(OUTLIVE_OPEN(handles, key, open_it, outlive_string("some")) == OUTLIVE_OK);
    CHECK(OUTLIVE_OPEN(handles, outlive_string("l"), open_late, outlive_string("some")) == OUTLIVE_OK);
    CHECK(outlive_commit() == OUTLIVE_OK && handles_count() == 2 && opened == 2);
    void *value = handles_use(key);
    CHECK(value != NULL && handles_use(key) == NULL && outlive_end(value) == OUTLIVE_OK);
    CHECK(outlive_rollback() == OUTLIVE_OK);
    CHECK(handles_close(key) == OUTLIVE_OK && outlive_rollback() == OUTLIVE_OK && handles_count() == 2);
    CHECK(handles_close(key) == OUTLIVE_OK && handles_close(key) == OUTLIVE_NONE && outlive_commit() == OUTLIVE_OK);
    for (int wait = 0; wait < 2000 && !__atomic_load_n(&undone, __ATOMIC_SEQ_CST); wait++) usleep(5000);
    CHECK(undone == 1 && handles_use(key) == NULL);
}

int main(void) {
    struct outlive_state state;
    CHECK(outlive_status(&state) == OUTLIVE_OK && state.role == OUTLIVE_ALONE);
    CHECK(*outlive_last_error() == 0);
    variables();
    maps();
    lists();
    numbers_and_texts();
    failures();
    transactions();
    functions();
    puts("all of it");
    return 0;
}
