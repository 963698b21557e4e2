// A program with its own allocator, which everything in it uses, libc too. Eight threads do nothing but allocate, resize and free, and
// check that what they have is theirs alone. The fix rounds sizes in another way (an inline function), counts, and overwrites
// what is freed.
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CLASSES 10
#define CACHED 16
#define THREADS 8

struct block {
    struct block *next;
    size_t class;
};

struct central {
    pthread_mutex_t lock;
    struct block *free;
};

static struct central central[CLASSES] = {[0 ... CLASSES - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};
static __thread struct block *cache[CLASSES];
static __thread int cached[CLASSES];
static volatile long wrong, rounds[THREADS];

static inline size_t class_of(size_t size) {
    size_t class = 0;
#ifdef FIXED
    size = size < 64 ? 64 : size;
#endif
    while (((size_t)32 << class) < size) class ++;
    return class;
}

static struct block *more(size_t class) {
    size_t each = sizeof(struct block) + ((size_t)32 << class);
    char *at = mmap(NULL, each * 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return NULL;
    struct block *first = NULL;
    for (int i = 0; i < 64; i++) {
        struct block *block = (struct block *)(at + each * i);
        block->next = first;
        block->class = class;
        first = block;
    }
    return first;
}

#ifdef FIXED
static unsigned long counted;

__attribute__((noinline)) static void count(const char *what, size_t size) {
    if (what[0] == 'a' && size < ((size_t)32 << CLASSES)) __atomic_fetch_add(&counted, 1, __ATOMIC_RELAXED);
}

unsigned long allocations(void) { return __atomic_load_n(&counted, __ATOMIC_RELAXED); }
#else
unsigned long allocations(void) { return 0; }
#endif

void *malloc(size_t size) {
    size_t class = class_of(size);
    if (class >= CLASSES) {
        errno = ENOMEM;
        return NULL;
    }
#ifdef FIXED
    count("allocated", size);
#endif
    struct block *block = cache[class];
    if (block) {
        cache[class] = block->next;
        cached[class]--;
        return block + 1;
    }
    pthread_mutex_lock(&central[class].lock);
    if (!central[class].free) central[class].free = more(class);
    block = central[class].free;
    if (block) central[class].free = block->next;
    pthread_mutex_unlock(&central[class].lock);
    return block ? block + 1 : NULL;
}

void free(void *at) {
    if (!at) return;
    struct block *block = (struct block *)at - 1;
    size_t class = block->class;
#ifdef FIXED
    memset(at, 0x5a, (size_t)32 << class);
#endif
    if (cached[class] < CACHED) {
        block->next = cache[class];
        cache[class] = block;
        cached[class]++;
        return;
    }
    pthread_mutex_lock(&central[class].lock);
    block->next = central[class].free;
    central[class].free = block;
    pthread_mutex_unlock(&central[class].lock);
}

void *calloc(size_t count, size_t size) {
    size_t length;
    if (__builtin_mul_overflow(count, size, &length)) return NULL;
    void *at = malloc(length);
    return at ? memset(at, 0, length) : NULL;
}

void *realloc(void *at, size_t size) {
    if (!at) return malloc(size);
    size_t has = (size_t)32 << ((struct block *)at - 1)->class;
    if (class_of(size) == ((struct block *)at - 1)->class) return at;
    void *other = malloc(size);
    if (!other) return NULL;
    memcpy(other, at, has < size ? has : size);
    free(at);
    return other;
}

static int holds(const unsigned char *at, size_t size, unsigned char value) {
    for (size_t i = 0; i < size; i++)
        if (at[i] != value) return 0;
    return 1;
}

struct own {
    long self;
    unsigned seed;
    unsigned char *have[32];
    size_t sizes[32];
};

// What a thread does is called anew each time, and so gets the new functions.
__attribute__((noinline)) static void turn(struct own *own) {
    unsigned slot = (own->seed = own->seed * 1103515245u + 12345u) >> 16 & 31;
    unsigned char value = slot * 8 + own->self;
    if (own->have[slot] && !holds(own->have[slot], own->sizes[slot], value)) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
    size_t size = 1 + (own->seed >> 8) % 700;
    if (own->seed & 1 << 30) {
        free(own->have[slot]);
        own->have[slot] = malloc(size);
    } else {
        own->have[slot] = realloc(own->have[slot], size);
    }
    if (!own->have[slot]) abort();
    own->sizes[slot] = size;
    memset(own->have[slot], value, size);
    rounds[own->self]++;
}

static void *run(void *argument) {
    struct own own = {.self = (long)argument, .seed = (long)argument + 1};
    for (;;) turn(&own);
    return NULL;
}

__attribute__((noinline)) static void say(long least) {
    char *text = malloc(128);
    snprintf(text, 128, "%ld %lu %ld", wrong, allocations(), least);
    puts(text);
    free(text);
}

int main(void) {
    pthread_t thread;
    for (long i = 0; i < THREADS; i++) pthread_create(&thread, NULL, run, (void *)i);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        long least = rounds[0];
        for (int i = 1; i < THREADS; i++) least = rounds[i] < least ? rounds[i] : least;
        say(least);
        fflush(stdout);
    }
    return 0;
}
