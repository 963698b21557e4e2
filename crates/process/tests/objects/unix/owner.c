// object: unix socket with an owner for signals (F_SETOWN, FIOASYNC), between processes
// status: captured
// note: as nginx has its channels; the rights by which it signals are root's afterwards
#include "object.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static volatile sig_atomic_t signals;

static void on_signal(int signal) {
    (void)signal;
    signals++;
}

int main(void) {
    int pair[2], on = 1;
    signal(SIGIO, on_signal);
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CHECK(!ioctl(pair[0], FIOASYNC, &on));
    CHECK(!fcntl(pair[0], F_SETOWN, getpid()));
    CHECK(!fcntl(pair[0], F_SETFL, fcntl(pair[0], F_GETFL) | O_NONBLOCK));
    ready();
    do {
        int before = signals;
        char byte;
        CHECK(write(pair[1], "x", 1) == 1);
        CHECK(read(pair[0], &byte, 1) == 1);
        for (int i = 0; i < 1000 && signals == before; i++) usleep(100);
        CHECK(signals > before);
        CHECK_EQUAL(fcntl(pair[0], F_GETOWN), getpid());
    } while (go_on());
    PASS();
}
