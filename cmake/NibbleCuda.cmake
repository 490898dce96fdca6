# The CUDA back end: one shared library of the .cu and .cpp files below src/*/cuda, loaded by `nibble` when it and a
# driver are there (src/ops/cuda_loader.h). NIBBLE_CUDA says when it is built: AUTO where nvcc and a GPU are found, for
# that GPU; TOOLKIT where nvcc is found; ON always; OFF never. NIBBLE_CUDA_ARCHITECTURES, if given, takes what CMake's
# CUDA_ARCHITECTURES does; `make cuda-all` gives the list for release.
set(NIBBLE_CUDA AUTO CACHE STRING "build the CUDA back end: AUTO, TOOLKIT, ON or OFF")
set_property(CACHE NIBBLE_CUDA PROPERTY STRINGS AUTO TOOLKIT ON OFF)
set(NIBBLE_CUDA_ARCHITECTURES "" CACHE STRING "GPU architectures to compile for; empty: by NIBBLE_CUDA")

set(cuda_wanted ${NIBBLE_CUDA})
# 90a: machine code for Hopper; PTX of 90 for what comes after.
set(cuda_architectures "90a-real;90-virtual")
if(NIBBLE_CUDA STREQUAL "AUTO")
  execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE no_gpu OUTPUT_QUIET ERROR_QUIET)
  if(no_gpu)
    set(cuda_wanted OFF)
  else()
    set(cuda_architectures native)
  endif()
endif()
if(NIBBLE_CUDA_ARCHITECTURES)
  set(cuda_architectures ${NIBBLE_CUDA_ARCHITECTURES})
endif()

set(NIBBLE_WITH_CUDA OFF)
if(NOT cuda_wanted STREQUAL "OFF" AND NOT NIBBLE_SANITIZE)
  include(CheckLanguage)
  find_program(NIBBLE_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(NIBBLE_NVCC)
    set(CMAKE_CUDA_COMPILER ${NIBBLE_NVCC})
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
    # Set before the language is enabled: its compiler test wants an architecture.
    set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
    enable_language(CUDA)
    # Debian 12's CMake does not know that nvcc takes C++20.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit REQUIRED)
    set(NIBBLE_WITH_CUDA ON)
  elseif(NIBBLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "NIBBLE_CUDA is ON and no nvcc is found: install a CUDA toolkit (12.8 or later), or set NIBBLE_CUDA=OFF")
  endif()
endif()
message(STATUS "CUDA back end: ${NIBBLE_WITH_CUDA}")

if(NIBBLE_WITH_CUDA)
  file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS
    ${CMAKE_SOURCE_DIR}/src/*/cuda/*.cu ${CMAKE_SOURCE_DIR}/src/*/cuda/*.cpp)
  add_library(nibble_cuda SHARED ${cuda_sources})
  set_target_properties(nibble_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
  target_compile_options(nibble_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${NIBBLE_WARNINGS}>"
    # -Wpedantic and -Wconversion complain about what nvcc itself writes.
    "$<$<COMPILE_LANGUAGE:CUDA>:-lineinfo;--expt-relaxed-constexpr;-Xcompiler=-Wall,-Wextra;-Xptxas=-warn-spills>")
  if(NIBBLE_WERROR)
    target_compile_options(nibble_cuda PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-Werror>" "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
  endif()
  foreach(module core formats kernels ops)
    target_include_directories(nibble_cuda PRIVATE ${CMAKE_BINARY_DIR}/modules/${module})
  endforeach()
  # nvcc does not evaluate fmt's checks of format strings at compile time; g++ does, in every other file.
  target_compile_definitions(nibble_cuda PRIVATE
    NIBBLE_VERSION="${PROJECT_VERSION}" "$<$<COMPILE_LANGUAGE:CUDA>:FMT_CONSTEVAL=;FMT_USE_CONSTEXPR=1>")
  # What it uses of kernels and ops is the program's own (the registry must be one); core and formats stand in for what
  # a program that loads it may have left out.
  target_link_libraries(nibble_cuda PRIVATE nibble_formats nibble_core CUDA::cublasLt CUDA::cudart_static)
endif()
