// Two functions that must agree, called by three threads all the time: the key that one says is the one that the other expects. Over a
// connection it says how often they did not (`?`), and stays in a function for as long as it is told to (`i`, `o`).
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef FIXED
#define KEY 2
#else
#define KEY 1
#endif

static volatile long wrong;
static volatile int turns = 2000;

__attribute__((noinline)) static void spend(int turns) {
    for (volatile int i = 0; i < turns; i++) {}
}

int second(int depth, int key);

__attribute__((noinline)) int first(int depth) {
    spend(turns);
    return second(depth, KEY);
}

__attribute__((noinline)) int second(int depth, int key) {
    if (key != KEY) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
    spend(turns);
    int below = depth > 0 ? first(depth - 1) : 0;
    return below == 0 || below == KEY ? KEY : -1;
}

__attribute__((noinline)) int inside(int in, int out) {
    char byte = 0;
    if (write(out, "in\n", 3) != 3) return 0;
    while (read(in, &byte, 1) == 1 && byte != 'o') {}
    return KEY;
}

static void *run(void *argument) {
    for (;;) {
        if (first(2) < 0) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return argument;
}

static void serve(int in, int out) {
    char byte, line[64];
    while (read(in, &byte, 1) == 1) {
        int value = byte == 'i' ? inside(in, out) : first(0);
        int length = snprintf(line, sizeof line, "%ld %d\n", wrong, value);
        if (write(out, line, length) != length) return;
    }
}

int main(int count, char **words) {
    pthread_t thread;
    for (int i = 0; i < 3; i++) pthread_create(&thread, NULL, run, NULL);
    if (count < 2) return 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8)) return 1;
    for (;;) {
        int client = accept(listener, 0, 0);
        if (client < 0) continue;
        serve(client, client);
        close(client);
    }
}
