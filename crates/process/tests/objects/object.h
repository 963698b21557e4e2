// What every object program has in common: it says when its object is in use, goes on using it until it is asked for its
// verdict, and gives one. A program that has given it waits to be killed, so that what it said is not its last output.
#ifndef OBJECT_H
#define OBJECT_H

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// Parts that a program does not use are no fault.
#pragma GCC diagnostic ignored "-Wunused-function"

static volatile sig_atomic_t object_asked;

// Asked again because its verdict takes a while, it must not be interrupted in what leads to it.
static void object_ask(int signal_number) {
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(signal_number, &ignore, 0);
    object_asked = 1;
}

static void object_say(const char *format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(1, line, length) != length) _exit(9);
}

// From here on it may be killed, revived elsewhere and asked. Call it in the first process, when the object exists.
static void ready(void) {
    struct sigaction action = {.sa_handler = object_ask, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    object_say("ready");
}

// Whether to use the object once more. Sleeps a little, so that many programs can run side by side.
static int go_on(void) {
    struct timespec rest = {0, 2000000};
    while (nanosleep(&rest, &rest) && errno == EINTR && !object_asked) {}
    return !object_asked;
}

// Only the first verdict counts.
static void object_end(void) {
    for (;;) pause();
}

#define FAIL(...) \
    do { \
        char object_why[256]; \
        int object_errno = errno; \
        snprintf(object_why, sizeof object_why, __VA_ARGS__); \
        object_say("FAIL %s:%d: %s (errno %d)", strrchr(__FILE__, '/') + 1, __LINE__, object_why, object_errno); \
        object_end(); \
    } while (0)

#define CHECK(condition) \
    do { \
        if (!(condition)) FAIL("%s", #condition); \
    } while (0)

// Checks that two numbers are equal, and says both if they are not.
#define CHECK_EQUAL(left, right) \
    do { \
        long long object_left = (long long)(left), object_right = (long long)(right); \
        if (object_left != object_right) \
            FAIL("%s is %lld, %s is %lld", #left, object_left, #right, object_right); \
    } while (0)

#define PASS() \
    do { \
        object_say("PASS"); \
        object_end(); \
        return 0; \
    } while (0)

// Seconds of the monotonic clock.
static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

#endif
