// object: pipe that signals a group of processes by a signal of its choice (F_SETSIG, O_ASYNC)
// status: captured
#include "object.h"
#include <fcntl.h>

static volatile sig_atomic_t signals, number;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    number = info->si_fd;
    signals++;
}

int main(void) {
    int ends[2];
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN + 3, &action, 0);
    CHECK(!pipe2(ends, O_NONBLOCK));
    CHECK(!fcntl(ends[0], F_SETSIG, SIGRTMIN + 3));
    CHECK(!fcntl(ends[0], F_SETOWN, -getpgrp()));
    CHECK(!fcntl(ends[0], F_SETFL, O_NONBLOCK | O_ASYNC));
    ready();
    do {
        int before = signals;
        char byte;
        CHECK(write(ends[1], "x", 1) == 1);
        for (int i = 0; i < 1000 && signals == before; i++) usleep(100);
        CHECK(signals > before);
        CHECK_EQUAL(number, ends[0]);
        CHECK(read(ends[0], &byte, 1) == 1);
        CHECK_EQUAL(fcntl(ends[0], F_GETSIG), SIGRTMIN + 3);
    } while (go_on());
    PASS();
}
