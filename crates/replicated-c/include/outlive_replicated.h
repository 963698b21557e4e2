/* outlive_replicated: state of C and C++ programs that is also somewhere else.
 *
 * Made by cbindgen of crates/replicated-c; see docs/replicated-c.md for the guide. */

#ifndef OUTLIVE_REPLICATED_H
#define OUTLIVE_REPLICATED_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

// What a function of this library returns. `outlive_last_error()` has the words for all but the first two.
enum outlive_code {
    // It was done.
    OUTLIVE_OK = 0,
    // It is not known yet: ask again.
    OUTLIVE_PENDING = 1,
    // There is no such element.
    OUTLIVE_NONE = 2,
    // Another process has taken over: this one must not answer anybody any more, and is to end.
    OUTLIVE_DEPOSED = 10,
    // The program was stopped.
    OUTLIVE_STOPPED = 11,
    // A transaction could not be undone: this process is to end.
    OUTLIVE_BROKEN = 12,
    // This transaction and another wait for each other's objects, to change them or while one holds a pointer for reading.
    // `outlive_transaction` tries again by itself, unless something was changed before it.
    OUTLIVE_DEADLOCK = 20,
    // A pointer is held and not ended: for writing; or for reading what this transaction has changed, which cannot be undone
    // meanwhile. Nothing is committed or undone: end it, then ask again.
    OUTLIVE_GUARD_ALIVE = 21,
    // The transaction is too large; it was undone.
    OUTLIVE_TOO_LARGE = 22,
    // A replicated function failed on the backup; the transaction was undone.
    OUTLIVE_CALL_FAILED = 23,
    // The work of a transaction returned something else than 0; it was undone.
    OUTLIVE_WORK_FAILED = 24,
    // The client has asked for something later since.
    OUTLIVE_PASSED = 25,
    // This thread has changed replicated state and not committed.
    OUTLIVE_UNCOMMITTED = 30,
    // What this thread committed last is not acknowledged yet.
    OUTLIVE_UNACKNOWLEDGED = 31,
    // An argument that cannot be, or something that was not declared or not begun.
    OUTLIVE_MISUSE = 40,
    // A declaration that cannot be, or that comes too late.
    OUTLIVE_BAD_DECLARATION = 41,
    // A configuration that cannot be used.
    OUTLIVE_BAD_CONFIG = 42,
    // This process could not take part.
    OUTLIVE_NOT_STARTED = 43,
    // The primary runs a program whose state this one cannot hold.
    OUTLIVE_INCOMPATIBLE = 44,
    // A defect of this library, caught at its edge.
    OUTLIVE_PANICKED = 50,
};

// How this process came to be the primary.
enum outlive_how {
    // It is the first: the state is as the program makes it now.
    OUTLIVE_FRESH = 0,
    // It took over, and the state is what was committed.
    OUTLIVE_TAKEN_OVER = 1,
};

// What this process is.
enum outlive_role {
    // It was not started.
    OUTLIVE_ALONE = 0,
    // It follows a primary.
    OUTLIVE_BACKUP = 1,
    // Its commits count.
    OUTLIVE_PRIMARY = 2,
    // Another took its place.
    OUTLIVE_LOST_PLACE = 3,
};

// What a field of a replicated struct holds.
enum outlive_kind {
    // After the last field.
    OUTLIVE_END = 0,
    // An unsigned integer of 1, 2, 4 or 8 bytes.
    OUTLIVE_UNSIGNED = 1,
    // A signed integer of 1, 2, 4 or 8 bytes.
    OUTLIVE_SIGNED = 2,
    // `float` or `double`.
    OUTLIVE_FLOATING = 3,
    // `bool`.
    OUTLIVE_BOOLEAN = 4,
    // A text in an array of `char`, up to its first zero.
    OUTLIVE_CHARS = 5,
    // An array of bytes, all of it.
    OUTLIVE_OCTETS = 6,
    // Another replicated struct.
    OUTLIVE_NESTED = 7,
};

// What a replicated static is.
enum outlive_form {
    // One struct.
    OUTLIVE_FORM_VARIABLE = 0,
    // From keys to structs, or to bytes.
    OUTLIVE_FORM_MAP = 1,
    // Structs, or bytes, in a row.
    OUTLIVE_FORM_LIST = 2,
    // A number that is added to.
    OUTLIVE_FORM_COUNTER = 3,
    // A long text.
    OUTLIVE_FORM_TEXT = 4,
    // From keys to what replicated functions opened.
    OUTLIVE_FORM_HANDLES = 5,
};

// When a backup calls a replicated function, and what it does about an error there.
enum outlive_policy {
    // Before the commit that the handle is part of is acknowledged; an error on the backup fails that commit.
    OUTLIVE_EAGER = 0,
    // Soon after that; an error is said in the log and in the status, and it is tried again.
    OUTLIVE_EAGER_RETRY = 1,
    // At takeover, or when the value is first used after that.
    OUTLIVE_LAZY = 2,
};

// How many of the backups hold a commit before it is acknowledged.
enum outlive_wait_for {
    // Every one. Any that lives takes over.
    OUTLIVE_ALL = 0,
    // As many as make, with the primary, more than half of all.
    OUTLIVE_MAJORITY = 1,
    // One. The primary may die, and no backup with it: all of them must be heard before one takes over.
    OUTLIVE_ONE = 2,
};

// What a request is answered with.
struct outlive_reply;

// A field of a replicated struct, as `OUTLIVE_STRUCT` describes it.
struct outlive_field {
    // Its name.
    const char *name;
    // An `outlive_kind`.
    uint32_t kind;
    // Whether it is zero where the primary has none.
    uint32_t added;
    // Where it lies in the struct.
    size_t offset;
    // How many bytes one of it has.
    size_t size;
    // How many of it there are; 0 if it is no array.
    size_t count;
    // The struct that it is, for `OUTLIVE_NESTED`.
    const struct outlive_type *(*nested)(void);
    // An earlier name of it, or NULL.
    const char *was;
};

// A replicated struct, as `OUTLIVE_STRUCT` describes it.
struct outlive_type {
    // Its tag.
    const char *name;
    // How many bytes it has.
    size_t size;
    // At multiples of how many bytes it lies.
    size_t alignment;
    // Its fields, and after the last one `OUTLIVE_END`.
    const struct outlive_field *fields;
};

// A replicated static, as the macros declare it. It is the library's from its registration on: do not change it.
struct outlive_static {
    // Its name, the same in every version of the program.
    const char *name;
    // An `outlive_form`.
    uint32_t form;
    // The struct that it consists of; NULL for bytes, and where there is none.
    const struct outlive_type *(*of)(void);
    // The library's.
    void *object;
};

// Bytes that this library has given away: `outlive_buffer_free` takes them back.
struct outlive_buffer {
    // Where they are; NULL if there are none.
    void *data;
    // How many there are.
    size_t length;
};

// Bytes of the program, lent to this library for a call; of this library, lent to the program.
struct outlive_bytes {
    // Where they are; may be NULL if there are none.
    const void *data;
    // How many there are.
    size_t length;
};

// Looks at an element: what `outlive_map_each` was given as `context`, the element's key, and the element. Returns 0 to go
// on. Both are lent until it returns.
typedef int (*outlive_visit_entry)(void *context, struct outlive_bytes key, struct outlive_bytes element);

// Looks at an element: what `outlive_list_each` was given as `context`, and the element. Returns 0 to go on.
typedef int (*outlive_visit_element)(void *context, struct outlive_bytes element);

// Is told how a commit ended: `OUTLIVE_OK` when it is acknowledged. Called by a thread of the library, one after the other.
typedef void (*outlive_told)(void *context, uint64_t number, enum outlive_code code);

// The work of a transaction: it returns 0 to have it committed.
typedef int (*outlive_work)(void *context);

// Which request of which client.
struct outlive_request {
    // The client: 128 bits, random, made by it once and kept over its connections.
    uint64_t client_high;
    // The lower half.
    uint64_t client_low;
    // Its requests, one after the other: each number is higher than the one before.
    uint64_t number;
};

// The work of a request: it returns 0 to have it committed, together with what it has put into `reply`.
typedef int (*outlive_request_work)(void *context, struct outlive_reply *reply);

// Opens something: by arguments that were given by the program, on whichever side. Returns 0 and the value, which must
// not be NULL; or something else, and says why by `outlive_fail`. A backup calls it on a thread of the library.
typedef int (*outlive_open)(struct outlive_bytes arguments, void **value);

// Ends what was opened.
typedef void (*outlive_undo)(void *value);

// A replicated function, as `OUTLIVE_FUNCTION` declares it.
struct outlive_function {
    // Its name, the same in every version of the program.
    const char *name;
    // An `outlive_policy`.
    uint32_t policy;
    // What it does.
    outlive_open open;
    // What undoes it; NULL for nothing.
    outlive_undo undo;
};

// Another process, or a seed node.
struct outlive_node {
    // Its name, which its certificate must prove.
    const char *name;
    // Where it listens: "10.0.0.1:7500".
    const char *address;
};

// How this process takes part: the same program, cluster and seed nodes on every node. Begin with `{0}`: what is 0 or NULL
// is as if it was not said.
struct outlive_config {
    // The program, as the seed nodes know it.
    const char *name;
    // Where its backups find this process when it is the primary.
    const char *listen;
    // The cluster: 32 hexadecimal digits, the same everywhere.
    const char *cluster;
    // The path of the certificate of the cluster's authority.
    const char *ca;
    // The path of this process's certificate.
    const char *certificate;
    // The path of its key.
    const char *key;
    // The other processes that run this program; this one may be among them.
    const struct outlive_node *peers;
    // How many there are.
    size_t peer_count;
    // Who has a vote.
    const struct outlive_node *seeds;
    // How many there are.
    size_t seed_count;
    // For how long nothing is heard of a process that is dead: milliseconds, 10 to 60,000; 0 for 500.
    uint32_t detection_ms;
    // Whether commits wait while there is no backup; else they go on, once the seed nodes have granted that.
    uint32_t wait_when_exposed;
    // How many backups hold a commit before it is acknowledged: one of `outlive_wait_for`.
    uint32_t wait_for;
    // How many bytes may be on their way to each backup; 0 for 64 MiB. Beyond that commits wait for a backup that is waited
    // for, and one that is not is let go of.
    size_t unacknowledged;
    // A backup that lives and is slower than this is let go of: milliseconds; 0 for never.
    uint32_t patience_ms;
    // Says in the log which transactions stay open for longer than this: milliseconds; 0 for never.
    uint32_t doctor_ms;
    // Starts anew, from nothing, a program that is lost: the operator's word that whoever held it in this generation is
    // dead for good, and its backups as well; 0 for no such word.
    uint64_t lost_generation;
};

// What is known of how this process became the primary.
struct outlive_started {
    // How it came to be the primary.
    enum outlive_how how;
    // The last commit that is part of the state, the generation in which this process speaks.
    uint64_t commit;
    // See `commit`.
    uint64_t generation;
    // From noticing that the primary was gone until the seed nodes had granted its place: microseconds.
    uint64_t granted_us;
    // From then until this process could go on: microseconds.
    uint64_t ready_us;
    // How many commits may have been acknowledged and are lost, where it went on without the dead by an operator's word (`outlive
    // replicated forget`); 0 if none, UINT64_MAX if nobody knows.
    uint64_t lost_at_most;
    // From which node it took over, as far as it fits.
    char from[64];
    // What was noticed of the primary, as far as it fits.
    char why[256];
};

// How it stands with this process.
struct outlive_state {
    // What it is.
    enum outlive_role role;
    // Whether it is the primary, has backups that may take over, and none of them is gone. Also 0 while one of several is
    // gone and the seed nodes do not know yet, though the others may hold all that is acknowledged.
    int is_protected;
    // In which generation it speaks; 0 before.
    uint64_t generation;
    // The last commit.
    uint64_t last;
    // The last commit that may be acknowledged.
    uint64_t acknowledged;
    // How many replicated functions fail on a backup and are tried again there.
    uint64_t failing;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The words for the last code of this thread that was neither `OUTLIVE_OK` nor `OUTLIVE_PENDING`; "" if there was none.
// They are valid until the thread's next call that fails.
const char *outlive_last_error(void);

// Makes a replicated static known. The macros call it before `main`; what went wrong is said by `outlive_start`.
//
// # Safety
// `it` is what one of the macros has declared, and lives as long as the process.
enum outlive_code outlive_register(struct outlive_static *it);

// Takes back what a buffer holds; the buffer is empty then. NULL, and an empty one, are nothing.
//
// # Safety
// `buffer` is NULL or was filled by this library and not given back since.
void outlive_buffer_free(struct outlive_buffer *buffer);

// The struct of a variable, to read until `outlive_end`; NULL if that fails. Waits while another transaction has changed
// it and not committed.
//
// # Safety
// `it` was declared by a macro.
const void *outlive_variable_read(const struct outlive_static *it);

// The struct of a variable, to change until `outlive_end`; NULL if that fails. It is this thread's transaction's own until
// that is committed or undone.
//
// # Safety
// `it` was declared by a macro.
void *outlive_variable_write(const struct outlive_static *it);

// The element of a key, to read until `outlive_end`; NULL if there is none, or if that fails. How many bytes it has is
// said in `length`, unless that is NULL.
//
// # Safety
// `it` was declared by a macro, the key can be read, `length` written.
const void *outlive_map_read(const struct outlive_static *it, struct outlive_bytes key, size_t *length);

// The struct of a key, to change until `outlive_end`; NULL if there is none, or if that fails.
//
// # Safety
// `it` was declared by a macro, the key can be read.
void *outlive_map_write(const struct outlive_static *it, struct outlive_bytes key);

// Copies the element of a key to `to`, which has `size` bytes; only says whether there is one if `to` is NULL.
// `OUTLIVE_NONE`: there is none.
//
// # Safety
// `it` was declared by a macro, the key can be read, `size` bytes can be written at `to`.
enum outlive_code outlive_map_copy(const struct outlive_static *it, struct outlive_bytes key, void *to, size_t size);

// Puts an element under a key, in place of the one that was there.
//
// # Safety
// `it` was declared by a macro, key and element can be read.
enum outlive_code outlive_map_put(const struct outlive_static *it,
                                  struct outlive_bytes key,
                                  struct outlive_bytes value);

// Takes the element of a key out. `OUTLIVE_NONE`: there was none.
//
// # Safety
// `it` was declared by a macro, the key can be read.
enum outlive_code outlive_map_remove(const struct outlive_static *it, struct outlive_bytes key);

// Shows all elements in the order of their keys, from the key `from` on, until `visit` returns something else than 0.
// The map cannot be changed by this thread meanwhile.
//
// # Safety
// `it` was declared by a macro, the key can be read, `visit` can be called with `context`.
enum outlive_code outlive_map_each(const struct outlive_static *it,
                                   struct outlive_bytes from,
                                   outlive_visit_entry visit,
                                   void *context);

// The element at a place, to read until `outlive_end`; NULL if there is none, or if that fails. How many bytes it has is
// said in `length`, unless that is NULL.
//
// # Safety
// `it` was declared by a macro, `length` can be written.
const void *outlive_list_read(const struct outlive_static *it,
                              size_t place,
                              size_t *length);

// The struct at a place, to change until `outlive_end`; NULL if there is none, or if that fails.
//
// # Safety
// `it` was declared by a macro.
void *outlive_list_write(const struct outlive_static *it, size_t place);

// Adds an element at the end, or in front if `in_front` is not 0.
//
// # Safety
// `it` was declared by a macro, the element can be read.
enum outlive_code outlive_list_push(const struct outlive_static *it, struct outlive_bytes value, int in_front);

// Puts an element in the place of another. `OUTLIVE_NONE`: there is no such place.
//
// # Safety
// `it` was declared by a macro, the element can be read.
enum outlive_code outlive_list_put(const struct outlive_static *it, size_t place, struct outlive_bytes value);

// Takes the last element out, or the first if `in_front` is not 0, and copies it to `to`, which has `size` bytes (NULL:
// nowhere). `OUTLIVE_NONE`: there was none.
//
// # Safety
// `it` was declared by a macro, `size` bytes can be written at `to`.
enum outlive_code outlive_list_pop(const struct outlive_static *it, int in_front, void *to, size_t size);

// The same for elements of any length: into a buffer that is to be given back.
//
// # Safety
// `it` was declared by a macro, `to` can be written and holds nothing.
enum outlive_code outlive_list_take(const struct outlive_static *it, int in_front, struct outlive_buffer *to);

// Shows all elements until `visit` returns something else than 0. The list cannot be changed by this thread meanwhile.
//
// # Safety
// `it` was declared by a macro, `visit` can be called with `context`.
enum outlive_code outlive_list_each(const struct outlive_static *it, outlive_visit_element visit, void *context);

// How many elements a map, a list, or what handles there are has, and how many bytes a text; 0 if that fails.
//
// # Safety
// `it` was declared by a macro.
size_t outlive_count(const struct outlive_static *it);

// Takes everything out of a map, a list, a text or handles, which undoes what these opened.
//
// # Safety
// `it` was declared by a macro.
enum outlive_code outlive_clear(const struct outlive_static *it);

// Adds to a counter, which wraps around at the ends of `int64_t`.
//
// # Safety
// `it` was declared by a macro.
enum outlive_code outlive_counter_add(const struct outlive_static *it, int64_t difference);

// A counter's number; 0 if that fails.
//
// # Safety
// `it` was declared by a macro.
int64_t outlive_counter_get(const struct outlive_static *it);

// Puts UTF-8 in place of `gone` bytes from `start` on; a `start` of `SIZE_MAX` is the end. `OUTLIVE_NONE`: that does not
// lie within the text and between its characters, and nothing happened.
//
// # Safety
// `it` was declared by a macro, the bytes can be read.
enum outlive_code outlive_text_replace(const struct outlive_static *it,
                                       size_t start,
                                       size_t gone,
                                       struct outlive_bytes comes);

// Copies a text into a buffer that is to be given back.
//
// # Safety
// `it` was declared by a macro, `to` can be written and holds nothing.
enum outlive_code outlive_text_get(const struct outlive_static *it, struct outlive_buffer *to);

// Ends a pointer to replicated memory that one of this library's functions returned to this thread. NULL is nothing.
// What was changed through it is part of the thread's transaction.
enum outlive_code outlive_end(const void *pointer);

// Ends this thread's transaction, and returns when as many backups hold it as are waited for. With nothing changed
// it waits until what was read may be answered with. If anything in the transaction failed, it is undone, and the code says
// what failed.
enum outlive_code outlive_commit(void);

// Ends this thread's transaction, and says the commit's number: to be asked for by `outlive_commit_poll`, waited for by
// `outlive_commit_wait`, or told of by `outlive_commit_then`. Nothing may be answered before.
//
// # Safety
// `number` can be written.
enum outlive_code outlive_commit_async(uint64_t *number);

// Whether a commit is acknowledged: `OUTLIVE_PENDING` while that is not known.
enum outlive_code outlive_commit_poll(uint64_t number);

// Waits until a commit is acknowledged.
enum outlive_code outlive_commit_wait(uint64_t number);

// Has `told` called when a commit has ended, however. It gets `context`, and must not wait for long: others are told by
// the same thread.
//
// # Safety
// `told` can be called with `context` by another thread, until it was.
enum outlive_code outlive_commit_then(uint64_t number, outlive_told told, void *context);

// Undoes what this thread changed since its last commit, and forgets what failed.
enum outlive_code outlive_rollback(void);

// Runs `work` as one transaction: committed if it returns 0 and nothing in it failed, undone else, and run again if it and
// another wait for each other's objects. Returns when it is acknowledged. What was changed before is part of it; with
// `OUTLIVE_DEADLOCK` all of it is undone, for that cannot be run again. `OUTLIVE_GUARD_ALIVE`: the work has left a pointer,
// and all of it is undone by the next commit or rollback after that is ended.
//
// # Safety
// `work` can be called with `context`, more than once, and leaves by returning.
enum outlive_code outlive_transaction(outlive_work work,
                                      void *context);

// Puts bytes at the end of a reply.
//
// # Safety
// `reply` is what the work was given, the bytes can be read.
enum outlive_code outlive_reply_append(struct outlive_reply *reply, struct outlive_bytes bytes);

// Does `work` once, however often the request is asked for, by whichever process: as one transaction together with the
// recording of its reply, which a repeated request gets. Of each client the last reply is kept.
//
// # Safety
// `work` can be called with `context`, more than once, and leaves by returning; `reply` can be written and holds nothing.
enum outlive_code outlive_once(struct outlive_request request,
                               outlive_request_work work,
                               void *context,
                               struct outlive_buffer *reply);

// A client that will not come back: its last reply is dropped, with the next commit.
enum outlive_code outlive_forget_client(uint64_t client_high, uint64_t client_low);

// Makes a replicated function known. The macro calls it before `main`; what went wrong is said by `outlive_start`.
//
// # Safety
// `it` is what the macro has declared, and lives as long as the process.
enum outlive_code outlive_register_function(const struct outlive_function *it);

// Says why a replicated function fails, from within it; returns 1, for it to return.
//
// # Safety
// `why` is NULL or a text that ends with a zero.
int outlive_fail(const char *why);

// Calls a replicated function, and keeps what it opened under a key: as part of this thread's transaction, whose commit
// has the backup call it as well. What was under the key before is undone, on both sides.
//
// # Safety
// `it` and `function` were declared by macros, the bytes can be read.
enum outlive_code outlive_handle_open(const struct outlive_static *it,
                                      struct outlive_bytes key,
                                      const struct outlive_function *function,
                                      struct outlive_bytes arguments);

// Lets go of what is under a key: undone on both sides, here once the commit of this is acknowledged. `OUTLIVE_NONE`: there
// is nothing.
//
// # Safety
// `it` was declared by a macro, the key can be read.
enum outlive_code outlive_handle_close(const struct outlive_static *it,
                                       struct outlive_bytes key);

// This side's value under a key, for this thread alone until `outlive_end`; opened now if this process has taken over and
// it is not there yet. NULL if there is none, or if that fails.
//
// # Safety
// `it` was declared by a macro, the key can be read.
void *outlive_handle_use(const struct outlive_static *it,
                         struct outlive_bytes key);

// Takes part, with a configuration of fields. On the primary it returns at once; on a backup when this process has taken
// over, and until then whatever changes replicated state waits. How it came about is written to `to`, unless that is NULL.
//
// # Safety
// `from` and all that it leads to can be read, `to` can be written.
enum outlive_code outlive_start(const struct outlive_config *from,
                                struct outlive_started *to);

// The same with the configuration in a file, as the guide shows it.
//
// # Safety
// `path` can be read, `to` can be written.
enum outlive_code outlive_start_file(const char *path, struct outlive_started *to);

// The same with the text of such a file.
//
// # Safety
// `configuration` can be read, `to` can be written.
enum outlive_code outlive_start_text(const char *configuration, struct outlive_started *to);

// How it stands with this process.
//
// # Safety
// `to` can be written.
enum outlive_code outlive_status(struct outlive_state *to);

// Ends the program as a whole: nothing is acknowledged any more, and no backup takes over.
enum outlive_code outlive_stop(void);

// Hands this primary's place over to a backup, for maintenance or for a newer version of the program; this process is to
// end then.
enum outlive_code outlive_hand_over(void);

// Whether this thread may tell anybody anything: `OUTLIVE_UNCOMMITTED` or `OUTLIVE_UNACKNOWLEDGED` if what it changed is not
// safe yet. `outlive_write` and `outlive_send` ask this before they write.
enum outlive_code outlive_output_check(void);

// Has the library's log written to standard error, by a filter like "info" or "outlive_replicated=debug"; NULL for the
// environment's `RUST_LOG`, or warnings.
//
// # Safety
// `filter` is NULL or a text that ends with a zero.
enum outlive_code outlive_log(const char *filter);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* OUTLIVE_REPLICATED_H */

#ifndef OUTLIVE_REPLICATED_MACROS_H
#define OUTLIVE_REPLICATED_MACROS_H

/* -------------------------------------------------------------------------------------------------------------------
 * What programs use. Needs GCC or Clang, for statics that make themselves known before `main` and for pointers that end
 * with their block.
 *
 * Fields of a replicated struct are listed once, in a macro:
 *
 *     #define ACCOUNT(X)                  \
 *         X(FIELD, uint64_t, balance)     \
 *         X(CHARS, owner, 32)             \
 *         X(ARRAY, uint32_t, days, 7)     \
 *         X(STRUCT, point, where)         \
 *         X(LOCAL, int, socket)
 *     OUTLIVE_STRUCT(account, ACCOUNT)
 *
 * which declares `struct account` and tells the library of it: a field that is added to the list is replicated.
 *
 * | form | field |
 * |---|---|
 * | `FIELD, type, name` | a number: `int8_t` to `uint64_t`, `int`, `unsigned`, `size_t`, `bool`, `char`, `float`, `double` |
 * | `ADDED, type, name` | the same, and zero where a primary of an older version has none |
 * | `RENAMED, type, name, was` | the same, called `was` in an older version |
 * | `CHARS, name, size` | a text of up to `size` bytes, in an array of `char` |
 * | `OCTETS, name, size` | `size` bytes |
 * | `ARRAY, type, name, count` | numbers in a row |
 * | `STRUCT, tag, name` | another replicated struct |
 * | `STRUCTS, tag, name, count` | replicated structs in a row |
 * | `LOCAL, type, name` | what each side has on its own: not replicated; zero at a takeover, and in an element that comes back by undoing |
 *
 * A pointer, a descriptor, a lock is none of these: write a key for a pointer, a replicated function for what is opened,
 * `LOCAL` for what is rebuilt.
 * ---------------------------------------------------------------------------------------------------------------- */

#if !defined(__GNUC__)
#error "outlive_replicated.h needs GCC or Clang"
#endif

#ifdef __cplusplus
#define OUTLIVE__ALIGNOF(tag) alignof(struct tag)
#define OUTLIVE__EXTERN_C extern "C"
#else
#define OUTLIVE__ALIGNOF(tag) _Alignof(struct tag)
#define OUTLIVE__EXTERN_C extern
#endif
#define OUTLIVE__UNUSED __attribute__((unused))

/* What can be a FIELD. A name that is missing here, in an error of the compiler, is a type that cannot be replicated. */
enum {
    OUTLIVE_CAN_REPLICATE_uint8_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint16_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint32_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_uint64_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_unsigned = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_size_t = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_int8_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int16_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int32_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int64_t = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_int = OUTLIVE_SIGNED,
    OUTLIVE_CAN_REPLICATE_char = OUTLIVE_UNSIGNED,
    OUTLIVE_CAN_REPLICATE_float = OUTLIVE_FLOATING,
    OUTLIVE_CAN_REPLICATE_double = OUTLIVE_FLOATING,
    OUTLIVE_CAN_REPLICATE_bool = OUTLIVE_BOOLEAN,
    OUTLIVE_CAN_REPLICATE__Bool = OUTLIVE_BOOLEAN
};

#define OUTLIVE__DECLARE(form, ...) OUTLIVE__DECLARE_##form(__VA_ARGS__)
#define OUTLIVE__DECLARE_FIELD(type, name) type name;
#define OUTLIVE__DECLARE_ADDED(type, name) type name;
#define OUTLIVE__DECLARE_RENAMED(type, name, was) type name;
#define OUTLIVE__DECLARE_CHARS(name, size) char name[size];
#define OUTLIVE__DECLARE_OCTETS(name, size) uint8_t name[size];
#define OUTLIVE__DECLARE_ARRAY(type, name, count) type name[count];
#define OUTLIVE__DECLARE_STRUCT(tag, name) struct tag name;
#define OUTLIVE__DECLARE_STRUCTS(tag, name, count) struct tag name[count];
#define OUTLIVE__DECLARE_LOCAL(type, name) type name;

#define OUTLIVE__DESCRIBE(form, ...) OUTLIVE__DESCRIBE_##form(__VA_ARGS__)
#define OUTLIVE__FIELD(name, kind, added, size, count, nested, was) \
    {#name, (uint32_t)(kind), added, offsetof(outlive__self, name), size, count, nested, was},
#define OUTLIVE__DESCRIBE_FIELD(type, name) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), 0, 0, 0)
#define OUTLIVE__DESCRIBE_ADDED(type, name) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 1, sizeof(type), 0, 0, 0)
#define OUTLIVE__DESCRIBE_RENAMED(type, name, was) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), 0, 0, #was)
#define OUTLIVE__DESCRIBE_CHARS(name, size) OUTLIVE__FIELD(name, OUTLIVE_CHARS, 0, size, 0, 0, 0)
#define OUTLIVE__DESCRIBE_OCTETS(name, size) OUTLIVE__FIELD(name, OUTLIVE_OCTETS, 0, size, 0, 0, 0)
#define OUTLIVE__DESCRIBE_ARRAY(type, name, count) \
    OUTLIVE__FIELD(name, OUTLIVE_CAN_REPLICATE_##type, 0, sizeof(type), count, 0, 0)
#define OUTLIVE__DESCRIBE_STRUCT(tag, name) \
    OUTLIVE__FIELD(name, OUTLIVE_NESTED, 0, sizeof(struct tag), 0, outlive__type_##tag, 0)
#define OUTLIVE__DESCRIBE_STRUCTS(tag, name, count) \
    OUTLIVE__FIELD(name, OUTLIVE_NESTED, 0, sizeof(struct tag), count, outlive__type_##tag, 0)
#define OUTLIVE__DESCRIBE_LOCAL(type, name)

/* A replicated struct: its tag, and the macro that lists its fields. Its name is what versions of the program find it by. */
#define OUTLIVE_STRUCT(tag, FIELDS)                                                                                   \
    struct tag {                                                                                                      \
        FIELDS(OUTLIVE__DECLARE)                                                                                      \
    };                                                                                                                \
    OUTLIVE__UNUSED static const struct outlive_type *outlive__type_##tag(void) {                                     \
        typedef struct tag outlive__self;                                                                             \
        static const struct outlive_field fields[] = {                                                                \
            FIELDS(OUTLIVE__DESCRIBE){0, OUTLIVE_END, 0, 0, 0, 0, 0, 0}};                                             \
        static const struct outlive_type type = {#tag, sizeof(struct tag), OUTLIVE__ALIGNOF(tag), fields};            \
        return &type;                                                                                                 \
    }

#define OUTLIVE__STATIC(name, form, of)                                                                               \
    struct outlive_static outlive__static_##name = {#name, form, of, 0};                                              \
    __attribute__((constructor, unused)) static void outlive__register_##name(void) {                                 \
        outlive_register(&outlive__static_##name);                                                                    \
    }

/* Bytes for a key or an element: of any object, of a text, of a pointer and a length. */
#define OUTLIVE_OF(object) outlive_lend(&(object), sizeof(object))
OUTLIVE__UNUSED static inline struct outlive_bytes outlive_lend(const void *data, size_t length) {
    struct outlive_bytes bytes;
    bytes.data = data;
    bytes.length = length;
    return bytes;
}
OUTLIVE__UNUSED static inline struct outlive_bytes outlive_string(const char *text) {
    return outlive_lend(text, text ? strlen(text) : 0);
}

OUTLIVE__UNUSED static inline void outlive__end(void *variable) {
    void *pointer;
    memcpy(&pointer, variable, sizeof pointer);
    outlive_end(pointer);
}
#define OUTLIVE__SCOPE(pointer, it)                                                                                   \
    for (__typeof__(pointer) it __attribute__((cleanup(outlive__end))) = pointer, outlive__once_##it = it;            \
         outlive__once_##it; outlive__once_##it = 0)

/* Blocks in which `it` is a pointer to a variable, or to the element of a key or at a place. They may be left in any way.
 * The block is passed over if there is no such element, and if it cannot be had: then the transaction has failed, and its
 * commit says so. */
#define OUTLIVE_READ(name, it) OUTLIVE__SCOPE(name##_read(), it)
#define OUTLIVE_WRITE(name, it) OUTLIVE__SCOPE(name##_write(), it)
#define OUTLIVE_READ_AT(name, key, it) OUTLIVE__SCOPE(name##_read(key), it)
#define OUTLIVE_WRITE_AT(name, key, it) OUTLIVE__SCOPE(name##_write(key), it)

/* A replicated variable: one struct. Like all that follow, `OUTLIVE_…` declares and defines it; for what several sources use,
 * `OUTLIVE_DECLARE_…` belongs in their header and `OUTLIVE_DEFINE_…` in one of them. */
#define OUTLIVE_DECLARE_REPLICATED(tag, name)                                                                         \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(void) {                                               \
        return (const struct tag *)outlive_variable_read(&outlive__static_##name);                                    \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(void) {                                                    \
        return (struct tag *)outlive_variable_write(&outlive__static_##name);                                         \
    }
#define OUTLIVE_REPLICATED(tag, name)                                                                                 \
    OUTLIVE_DECLARE_REPLICATED(tag, name)                                                                             \
    OUTLIVE_DEFINE_REPLICATED(tag, name)
#define OUTLIVE_DEFINE_REPLICATED(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_VARIABLE, outlive__type_##tag)

/* A replicated map: from keys, which are bytes, to structs. */
#define OUTLIVE_DECLARE_MAP(tag, name)                                                                                \
    OUTLIVE__DECLARE_MAP(name)                                                                                        \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(struct outlive_bytes key) {                           \
        return (const struct tag *)outlive_map_read(&outlive__static_##name, key, 0);                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(struct outlive_bytes key) {                                \
        return (struct tag *)outlive_map_write(&outlive__static_##name, key);                                         \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(struct outlive_bytes key, const struct tag *value) {   \
        return outlive_map_put(&outlive__static_##name, key, outlive_lend(value, sizeof *value));                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_copy(struct outlive_bytes key, struct tag *to) {           \
        return outlive_map_copy(&outlive__static_##name, key, to, to ? sizeof *to : 0);                               \
    }
#define OUTLIVE_MAP(tag, name)                                                                                        \
    OUTLIVE_DECLARE_MAP(tag, name)                                                                                    \
    OUTLIVE_DEFINE_MAP(tag, name)
#define OUTLIVE_DEFINE_MAP(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_MAP, outlive__type_##tag)

/* A replicated map from keys to bytes of any length. */
#define OUTLIVE_DECLARE_BYTES_MAP(name)                                                                               \
    OUTLIVE__DECLARE_MAP(name)                                                                                        \
    OUTLIVE__UNUSED static inline struct outlive_bytes name##_read(struct outlive_bytes key) {                        \
        struct outlive_bytes found = {0, 0};                                                                          \
        found.data = outlive_map_read(&outlive__static_##name, key, &found.length);                                   \
        return found;                                                                                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(struct outlive_bytes key,                              \
                                                               struct outlive_bytes value) {                          \
        return outlive_map_put(&outlive__static_##name, key, value);                                                  \
    }
#define OUTLIVE_BYTES_MAP(name)                                                                                       \
    OUTLIVE_DECLARE_BYTES_MAP(name)                                                                                   \
    OUTLIVE_DEFINE_BYTES_MAP(name)
#define OUTLIVE_DEFINE_BYTES_MAP(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_MAP, 0)

#define OUTLIVE__DECLARE_MAP(name)                                                                                    \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_remove(struct outlive_bytes key) {                         \
        return outlive_map_remove(&outlive__static_##name, key);                                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline bool name##_has(struct outlive_bytes key) {                                         \
        return outlive_map_copy(&outlive__static_##name, key, 0, 0) == OUTLIVE_OK;                                    \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_each(struct outlive_bytes from, outlive_visit_entry visit, \
                                                                void *context) {                                      \
        return outlive_map_each(&outlive__static_##name, from, visit, context);                                       \
    }
#define OUTLIVE__DECLARE_COLLECTION(name)                                                                             \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline size_t name##_count(void) { return outlive_count(&outlive__static_##name); }        \
    OUTLIVE__UNUSED static inline enum outlive_code name##_clear(void) {                                              \
        return outlive_clear(&outlive__static_##name);                                                                \
    }

/* A replicated list of structs, which grows and shrinks at both ends. */
#define OUTLIVE_DECLARE_LIST(tag, name)                                                                               \
    OUTLIVE__DECLARE_LIST(name)                                                                                       \
    OUTLIVE__UNUSED static inline const struct tag *name##_read(size_t place) {                                       \
        return (const struct tag *)outlive_list_read(&outlive__static_##name, place, 0);                              \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline struct tag *name##_write(size_t place) {                                            \
        return (struct tag *)outlive_list_write(&outlive__static_##name, place);                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(size_t place, const struct tag *value) {               \
        return outlive_list_put(&outlive__static_##name, place, outlive_lend(value, sizeof *value));                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push(const struct tag *value) {                            \
        return outlive_list_push(&outlive__static_##name, outlive_lend(value, sizeof *value), 0);                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push_front(const struct tag *value) {                      \
        return outlive_list_push(&outlive__static_##name, outlive_lend(value, sizeof *value), 1);                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_pop(struct tag *to) {                                      \
        return outlive_list_pop(&outlive__static_##name, 0, to, to ? sizeof *to : 0);                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_pop_front(struct tag *to) {                                \
        return outlive_list_pop(&outlive__static_##name, 1, to, to ? sizeof *to : 0);                                 \
    }
#define OUTLIVE_LIST(tag, name)                                                                                       \
    OUTLIVE_DECLARE_LIST(tag, name)                                                                                   \
    OUTLIVE_DEFINE_LIST(tag, name)
#define OUTLIVE_DEFINE_LIST(tag, name) OUTLIVE__STATIC(name, OUTLIVE_FORM_LIST, outlive__type_##tag)

/* A replicated list of bytes of any length; what is taken out is in a buffer that is given back. */
#define OUTLIVE_DECLARE_BYTES_LIST(name)                                                                              \
    OUTLIVE__DECLARE_LIST(name)                                                                                       \
    OUTLIVE__UNUSED static inline struct outlive_bytes name##_read(size_t place) {                                    \
        struct outlive_bytes found = {0, 0};                                                                          \
        found.data = outlive_list_read(&outlive__static_##name, place, &found.length);                                \
        return found;                                                                                                 \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_put(size_t place, struct outlive_bytes value) {            \
        return outlive_list_put(&outlive__static_##name, place, value);                                               \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push(struct outlive_bytes value) {                         \
        return outlive_list_push(&outlive__static_##name, value, 0);                                                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_push_front(struct outlive_bytes value) {                   \
        return outlive_list_push(&outlive__static_##name, value, 1);                                                  \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_take(struct outlive_buffer *to) {                          \
        return outlive_list_take(&outlive__static_##name, 0, to);                                                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_take_front(struct outlive_buffer *to) {                    \
        return outlive_list_take(&outlive__static_##name, 1, to);                                                     \
    }
#define OUTLIVE_BYTES_LIST(name)                                                                                      \
    OUTLIVE_DECLARE_BYTES_LIST(name)                                                                                  \
    OUTLIVE_DEFINE_BYTES_LIST(name)
#define OUTLIVE_DEFINE_BYTES_LIST(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_LIST, 0)
#define OUTLIVE__DECLARE_LIST(name)                                                                                   \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_each(outlive_visit_element visit, void *context) {         \
        return outlive_list_each(&outlive__static_##name, visit, context);                                            \
    }

/* A replicated number that is added to. */
#define OUTLIVE_DECLARE_COUNTER(name)                                                                                 \
    OUTLIVE__EXTERN_C struct outlive_static outlive__static_##name;                                                   \
    OUTLIVE__UNUSED static inline int64_t name##_get(void) { return outlive_counter_get(&outlive__static_##name); }   \
    OUTLIVE__UNUSED static inline enum outlive_code name##_add(int64_t difference) {                                  \
        return outlive_counter_add(&outlive__static_##name, difference);                                              \
    }
#define OUTLIVE_COUNTER(name)                                                                                         \
    OUTLIVE_DECLARE_COUNTER(name)                                                                                     \
    OUTLIVE_DEFINE_COUNTER(name)
#define OUTLIVE_DEFINE_COUNTER(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_COUNTER, 0)

/* A replicated long text in UTF-8, of which parts are replaced. */
#define OUTLIVE_DECLARE_TEXT(name)                                                                                    \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_append(struct outlive_bytes text) {                        \
        return outlive_text_replace(&outlive__static_##name, SIZE_MAX, 0, text);                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_replace(size_t start, size_t gone,                         \
                                                                   struct outlive_bytes comes) {                      \
        return outlive_text_replace(&outlive__static_##name, start, gone, comes);                                     \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_get(struct outlive_buffer *to) {                           \
        return outlive_text_get(&outlive__static_##name, to);                                                         \
    }
#define OUTLIVE_TEXT(name)                                                                                            \
    OUTLIVE_DECLARE_TEXT(name)                                                                                        \
    OUTLIVE_DEFINE_TEXT(name)
#define OUTLIVE_DEFINE_TEXT(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_TEXT, 0)

/* A replicated function: `int open(struct outlive_bytes arguments, void **value)`, when the backup calls it (an
 * `outlive_policy`), and what undoes it (`void undo(void *value)`, or 0). What it opened is kept under a key of HANDLES. */
#define OUTLIVE_FUNCTION(open, policy, undo)                                                                          \
    OUTLIVE__UNUSED static const struct outlive_function outlive__function_##open = {#open, policy, open, undo};      \
    __attribute__((constructor, unused)) static void outlive__register_function_##open(void) {                        \
        outlive_register_function(&outlive__function_##open);                                                         \
    }
#define OUTLIVE_DECLARE_HANDLES(name)                                                                                 \
    OUTLIVE__DECLARE_COLLECTION(name)                                                                                 \
    OUTLIVE__UNUSED static inline void *name##_use(struct outlive_bytes key) {                                        \
        return outlive_handle_use(&outlive__static_##name, key);                                                      \
    }                                                                                                                 \
    OUTLIVE__UNUSED static inline enum outlive_code name##_close(struct outlive_bytes key) {                          \
        return outlive_handle_close(&outlive__static_##name, key);                                                    \
    }
#define OUTLIVE_HANDLES(name)                                                                                         \
    OUTLIVE_DECLARE_HANDLES(name)                                                                                     \
    OUTLIVE_DEFINE_HANDLES(name)
#define OUTLIVE_DEFINE_HANDLES(name) OUTLIVE__STATIC(name, OUTLIVE_FORM_HANDLES, 0)
#define OUTLIVE_OPEN(name, key, function, arguments) \
    outlive_handle_open(&outlive__static_##name, key, &outlive__function_##function, arguments)

/* `write` and `send` for what leaves the process: -1 with `EBUSY`, and nothing is sent, while what this thread changed is not
 * safe. `outlive_send` raises no signal. */
OUTLIVE__UNUSED static inline ssize_t outlive_write(int descriptor, const void *data, size_t length) {
    if (outlive_output_check() != OUTLIVE_OK) {
        errno = EBUSY;
        return -1;
    }
    return write(descriptor, data, length);
}
OUTLIVE__UNUSED static inline ssize_t outlive_send(int descriptor, const void *data, size_t length) {
    if (outlive_output_check() != OUTLIVE_OK) {
        errno = EBUSY;
        return -1;
    }
    return send(descriptor, data, length, MSG_NOSIGNAL);
}

#endif  /* OUTLIVE_REPLICATED_MACROS_H */
